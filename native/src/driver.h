// The functions of NVIDIA's driver (libcuda.so.1), by name: there is none at build time. Source: the CUDA driver API, cuda.h.
#pragma once
#include <dlfcn.h>

#include "torch.h"

namespace graft {

class Driver {
 public:
  Driver() : library_(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL)) {}

  bool present() const { return library_ != nullptr; }

  template <typename... Args>
  int call(const char* name, Args... args) const {
    const auto function = reinterpret_cast<int (*)(Args...)>(dlsym(library_, name));
    TORCH_CHECK(function, "the NVIDIA driver has no function ", name);
    return function(args...);
  }

  std::string error(int code) const {
    const char* text = nullptr;
    call("cuGetErrorString", code, &text);
    return text ? text : "error " + std::to_string(code);
  }

 private:
  void* library_;
};

constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // CUdevice_attribute

}  // namespace graft
