// MKL takes its kernels for any processor on those that are not Intel's, whatever instructions they have: `mkl_serv_intel_cpu_true`,
// which libtorch_cpu exports and calls through its symbol table, answers 0 there. The addon is loaded before libtorch_cpu, so this
// definition is the one that is called. Products became 1.2 to 2 times as fast (docs/log.md). GRAFT_MKL=generic gives MKL's own
// answer back.
#include <cstdlib>
#include <cstring>

#include "mkl.h"

int mkl_serv_intel_cpu_true() {
  static const bool native = [] {
    const char* choice = std::getenv("GRAFT_MKL");
    if (choice && std::strcmp(choice, "generic") == 0) return bool(__builtin_cpu_is("intel"));
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  return native;
}
