// Devices besides the processor: NVIDIA's driver, LibTorch's CUDA half, the device of new tensors and its random numbers, and counts of what
// crosses between host and device.
#pragma once
#include "handles.h"

namespace graft {

// This thread's generator of a device, for operators that are given none.
at::Generator& random_of(Instance& self, at::Device device);

inline void count_move(Instance& self, at::Device to) { (to.is_cpu() ? self.transfers.to_host : self.transfers.to_device)++; }

Napi::Value cuda_driver(const Napi::CallbackInfo& info);
Napi::Value load_cuda(const Napi::CallbackInfo& info);
Napi::Value use_device(const Napi::CallbackInfo& info);
Napi::Value round_products(const Napi::CallbackInfo& info);
Napi::Value to_device(const Napi::CallbackInfo& info);
Napi::Value device_memory(const Napi::CallbackInfo& info);
Napi::Value has_kernel(const Napi::CallbackInfo& info);
Napi::Value record_operators(const Napi::CallbackInfo& info);
Napi::Value transfers(const Napi::CallbackInfo& info);
Napi::Value allocated(const Napi::CallbackInfo& info);
Napi::Value manual_seed(const Napi::CallbackInfo& info);
Napi::Value random_state(const Napi::CallbackInfo& info);

}  // namespace graft
