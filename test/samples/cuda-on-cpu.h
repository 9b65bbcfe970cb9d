// Runs CUDA kernels on the processor, for tests: what the language adds to C++, as far as native/cuda/ uses it. The threads of a block are
// fibers, which run in turn from one barrier to the next: in the order of their numbers in every other block, else backwards, so that a
// missing barrier shows.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __constant__ static
#define __shared__ static  // blocks run one after the other

struct Dim {
  unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim;

namespace on_cpu {

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf state;
  bool begun, done;
  static constexpr size_t kStack = 128 * 1024;
};

static std::vector<Fiber> fibers;
static Fiber* current;
static jmp_buf scheduler;
static std::function<void()> body;
static Barrier block, warps[32];
static float exchanged[1024];
static unsigned long events;  // arrivals and ends: without any, all wait for ever

inline void wait(Barrier& barrier, unsigned threads) {
  const unsigned generation = barrier.generation;
  events++;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.generation++;
    return;
  }
  while (barrier.generation == generation) {
    if (!_setjmp(current->state)) _longjmp(scheduler, 1);
  }
}

static void enter() {
  body();
  current->done = true;
  events++;
  _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber, unsigned thread) {
  current = &fiber;
  threadIdx = {thread, 0, 0};
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.state, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

static void run_block(unsigned threads, bool backwards) {
  while (fibers.size() < threads) fibers.emplace_back();
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.begun = fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = Fiber::kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
  }
  block = {};
  for (Barrier& warp : warps) warp = {};
  static unsigned i, left;  // not in registers, which jumps restore
  static unsigned long before;
  do {
    before = events;
    left = 0;
    for (i = 0; i < threads; i++) {
      const unsigned thread = backwards ? threads - 1 - i : i;
      if (!fibers[thread].done) resume(fibers[thread], thread);
      left += !fibers[backwards ? threads - 1 - i : i].done;
    }
    if (left > 0 && events == before) {
      std::fprintf(stderr, "%u threads of a block wait for threads that have ended\n", left);
      std::abort();
    }
  } while (left > 0);
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
void run(void (*kernel)(A...), unsigned x, unsigned y, unsigned z, unsigned threads, void** arguments) {
  blockDim = {threads, 1, 1};
  body = [=] { call(kernel, arguments, std::index_sequence_for<A...>()); };
  for (unsigned k = 0; k < z; k++)
    for (unsigned j = 0; j < y; j++)
      for (unsigned i = 0; i < x; i++) {
        blockIdx = {i, j, k};
        run_block(threads, (i + j + k) % 2);
      }
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(on_cpu::block, blockDim.x); }

inline float __shfl_xor_sync(unsigned, float x, int distance) {
  const unsigned thread = threadIdx.x;
  on_cpu::exchanged[thread] = x;
  on_cpu::wait(on_cpu::warps[thread / 32], 32);
  x = on_cpu::exchanged[thread ^ distance];
  on_cpu::wait(on_cpu::warps[thread / 32], 32);
  return x;
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
