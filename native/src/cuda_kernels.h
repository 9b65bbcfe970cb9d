// Launches the kernels of native/cuda/: compiled by NVRTC for the GPU of a tensor, when they are first launched there.
#pragma once
#include "torch.h"

namespace graft {

// Whether operators on this tensor launch these kernels: on a GPU; after use_host_kernels in this thread everywhere.
bool runs_cuda_kernels(const at::Tensor& tensor);

// The kernels' name of an element type: float, Bfloat16.
const char* number_name(at::ScalarType type);

// "kernel<a, b>"
std::string instance_of(const char* kernel, std::initializer_list<std::string> types);

// How many numbers a thread reads at a time: as many as have 16 bytes in the narrowest type where rows of c numbers are aligned to that, else 1.
int numbers_at_once(int64_t c, std::initializer_list<at::Tensor> tensors);

struct Grid {
  int64_t x, y = 1, z = 1;
};
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Threads of a block that share out n pieces of work: a multiple of 32.
inline int block_for(int64_t n, int64_t most = 256) { return static_cast<int>(std::min(most, std::max<int64_t>(1, ceil_div(n, 32)) * 32)); }

// file: of native/cuda/; instance: of a kernel there; pointers to its arguments, whose types are the kernel's.
void launch_kernel(const at::Tensor& on, const char* file, const std::string& instance, Grid grid, int threads, void** arguments);

// The same on the current stream of the tensor's device. An empty grid launches nothing.
template <typename... Arguments>
void launch(const at::Tensor& on, const char* file, const std::string& instance, Grid grid, int threads, Arguments... arguments) {
  void* pointers[] = {&arguments...};
  if (grid.x * grid.y * grid.z > 0) launch_kernel(on, file, instance, grid, threads, pointers);
}

// The memory of a tensor as an argument: null for none.
inline void* memory_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

Napi::Value load_nvrtc(const Napi::CallbackInfo& info);
Napi::Value compile_kernels(const Napi::CallbackInfo& info);
Napi::Value use_host_kernels(const Napi::CallbackInfo& info);

}  // namespace graft
