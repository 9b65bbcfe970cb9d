#include "device.h"

#include <dlfcn.h>

#include <cstring>
#include <map>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/record_function.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "driver.h"
#include "memory.h"

namespace graft {
namespace {

at::Generator new_generator(at::Device device, uint64_t seed) {
  // Tensors without numbers (meta) take any generator.
  at::Generator generator = device.is_cuda() ? at::detail::getCUDAHooks().getNewGenerator(device.index()) : at::make_generator<at::CPUGeneratorImpl>(seed);
  generator.set_current_seed(seed);
  return generator;
}

c10::DeviceAllocator& allocator_of(at::Device device) { return *c10::getDeviceAllocator(device.type()); }

std::map<std::string, int64_t>& operator_counts() {
  thread_local std::map<std::string, int64_t> counts;
  return counts;
}

std::unique_ptr<at::ObserverContext> count_operator(const at::RecordFunction& function) {
  if (const auto name = function.operator_name()) operator_counts()[c10::toString(*name)]++;
  return nullptr;
}

}  // namespace

at::Generator& random_of(Instance& self, at::Device device) {
  const auto found = self.random.find(device);
  if (found != self.random.end()) return found->second;
  return self.random.emplace(device, new_generator(device, self.seed)).first->second;
}

// () => null without a driver, else { version: 13000 for CUDA 13.0, gpus: [{ name, bytes, major, minor }], problem: why no GPU can be used }
Napi::Value cuda_driver(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "the NVIDIA driver", no_shapes, [&]() -> Napi::Value {
    const Driver driver;
    if (!driver.present()) return env.Null();
    Napi::Object out = Napi::Object::New(env);
    Napi::Array gpus = Napi::Array::New(env);
    out["gpus"] = gpus;
    int version = 0;
    driver.call("cuDriverGetVersion", &version);
    out["version"] = Napi::Number::New(env, version);
    int count = 0;
    int code = driver.call("cuInit", 0u);
    if (code == 0) code = driver.call("cuDeviceGetCount", &count);
    if (code != 0) out["problem"] = Napi::String::New(env, driver.error(code));
    for (int i = 0; i < count; i++) {
      int gpu = 0, major = 0, minor = 0;
      size_t bytes = 0;
      char name[256] = "";
      driver.call("cuDeviceGet", &gpu, i);
      driver.call("cuDeviceGetName", name, static_cast<int>(sizeof name), gpu);
      driver.call("cuDeviceTotalMem_v2", &bytes, gpu);
      driver.call("cuDeviceGetAttribute", &major, kComputeCapabilityMajor, gpu);
      driver.call("cuDeviceGetAttribute", &minor, kComputeCapabilityMinor, gpu);
      Napi::Object entry = Napi::Object::New(env);
      entry["name"] = Napi::String::New(env, name);
      entry["bytes"] = Napi::Number::New(env, static_cast<double>(bytes));
      entry["major"] = Napi::Number::New(env, major);
      entry["minor"] = Napi::Number::New(env, minor);
      gpus[static_cast<uint32_t>(i)] = entry;
    }
    return out;
  });
}

// (path of libtorch_cuda.so): adds LibTorch's CUDA half to this process. Before the first tensor: LibTorch remembers that it has none.
Napi::Value load_cuda(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "CUDA", no_shapes, [&]() -> Napi::Value {
    const std::string path = info[0].As<Napi::String>();
    TORCH_CHECK(dlopen(path.c_str(), RTLD_LAZY | RTLD_GLOBAL), dlerror());
    // float32 is float32: products are not rounded to TF32, as those of cuBLAS are not by default.
    at::globalContext().setAllowTF32CuDNN(false);
    return env.Undefined();
  });
}

// (name, or undefined) => the device of new tensors before
Napi::Value use_device(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "device", no_shapes, [&]() -> Napi::Value {
    Instance& self = instance(env);
    const at::Device before = self.device;
    if (info[0].IsString()) self.device = at::Device(info[0].As<Napi::String>().Utf8Value());
    return Napi::String::New(env, before.str());
  });
}

// (flag): whether products on the device of new tensors take factors of any type and round them to bfloat16 (LibTorch's autocast)
Napi::Value round_products(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "autocast", no_shapes, [&]() -> Napi::Value {
    const at::DeviceType type = instance(env).device.type();
    at::autocast::set_autocast_dtype(type, at::kBFloat16);
    at::autocast::set_autocast_cache_enabled(false);  // parameters change between passes
    at::autocast::set_autocast_enabled(type, info[0].As<Napi::Boolean>());
    return env.Undefined();
  });
}

// (handle, device) => handle of the tensor there
Napi::Value to_device(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "to", no_shapes, [&]() -> Napi::Value {
    Instance& self = instance(env);
    const at::Tensor tensor = self.tensors.get(info[0].As<Napi::Number>().Uint32Value());
    const at::Device device(info[1].As<Napi::String>().Utf8Value());
    if (tensor.device() != device) count_move(self, device);
    return Napi::Number::New(env, self.tensors.add(tensor.to(device)));
  });
}

// () => { free, total } in bytes, of the GPU that new tensors are on
Napi::Value device_memory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "memory", no_shapes, [&]() -> Napi::Value {
    const at::Device device = instance(env).device;
    at::globalContext().lazyInitDevice(device.type());
    auto& allocator = allocator_of(device);
    const auto [free, total] = allocator.getMemoryInfo(device.index());
    // What the allocator keeps for later tensors is free too.
    const auto stats = allocator.getDeviceStats(device.index());
    const int64_t kept = stats.reserved_bytes[0].current - stats.allocated_bytes[0].current;
    Napi::Object out = Napi::Object::New(env);
    out["free"] = Napi::Number::New(env, static_cast<double>(free) + static_cast<double>(kept));
    out["total"] = Napi::Number::New(env, static_cast<double>(total));
    return out;
  });
}

// () => { now, peak }: bytes of the tensors on the device of new tensors; on the processor those that this thread allocated
Napi::Value allocated(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "memory", no_shapes, [&]() -> Napi::Value {
    const at::Device device = instance(env).device;
    AllocatedBytes bytes{0, 0};
    if (device.is_cuda()) {
      at::globalContext().lazyInitDevice(device.type());
      const auto stats = allocator_of(device).getDeviceStats(device.index()).allocated_bytes[0];
      bytes = {stats.current, stats.peak};
      allocator_of(device).resetPeakStats(device.index());
    } else {
      bytes = allocated_bytes();
    }
    Napi::Object out = Napi::Object::New(env);
    out["now"] = Napi::Number::New(env, static_cast<double>(bytes.now));
    out["peak"] = Napi::Number::New(env, static_cast<double>(bytes.peak));
    return out;
  });
}

// (seed: bigint): seeds this thread's generators, for operators that are given none
Napi::Value manual_seed(const Napi::CallbackInfo& info) {
  bool lossless;
  Instance& self = instance(info.Env());
  self.seed = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
  for (auto& [device, generator] : self.random) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(self.seed);
  }
  return info.Env().Undefined();
}

// (state to set, or undefined) => ArrayBuffer: the state before of this thread's generator of the device of new tensors
Napi::Value random_state(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "random state", no_shapes, [&]() -> Napi::Value {
    Instance& self = instance(env);
    at::Generator& generator = random_of(self, self.device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    const at::Tensor before = generator.get_state();
    if (info[0].IsArrayBuffer()) {
      auto bytes = info[0].As<Napi::ArrayBuffer>();
      TORCH_CHECK(bytes.ByteLength() == before.nbytes(), "a random state has ", before.nbytes(), " bytes, got ", bytes.ByteLength());
      at::Tensor state = at::empty_like(before);
      std::memcpy(state.data_ptr(), bytes.Data(), state.nbytes());
      generator.set_state(state);
    }
    Napi::ArrayBuffer out = Napi::ArrayBuffer::New(env, before.nbytes());
    std::memcpy(out.Data(), before.const_data_ptr(), before.nbytes());
    return out;
  });
}

// (operator, dispatch key such as "CUDA") => whether a kernel is registered for it there, or one for every device that is made of others
Napi::Value has_kernel(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "kernels", no_shapes, [&]() -> Napi::Value {
    const std::string full = info[0].As<Napi::String>();
    const auto dot = full.find('.');
    const auto op = c10::Dispatcher::singleton().findSchema({full.substr(0, dot), dot == std::string::npos ? "" : full.substr(dot + 1)});
    TORCH_CHECK(op, "this LibTorch has no operator ", full);
    const auto key = c10::parseDispatchKey(info[1].As<Napi::String>().Utf8Value());
    bool found = false;
    for (const auto k : {key, c10::DispatchKey::CompositeImplicitAutograd, c10::DispatchKey::CompositeExplicitAutograd,
                         c10::DispatchKey::CompositeExplicitAutogradNonFunctional}) {
      found = found || op->hasKernelForDispatchKey(k);
    }
    return Napi::Boolean::New(env, found);
  });
}

// (body) => { name: calls } of every operator that the body runs in this thread, those inside of others and of a backward pass included
Napi::Value record_operators(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "operators", no_shapes, [&]() -> Napi::Value {
    operator_counts().clear();
    {
      const auto callback = at::RecordFunctionCallback(count_operator).scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
      const std::shared_ptr<void> added(nullptr, [handle = at::addThreadLocalCallback(callback)](void*) { at::removeCallback(handle); });
      info[0].As<Napi::Function>().Call({});
    }
    Napi::Object out = Napi::Object::New(env);
    for (const auto& [name, count] : operator_counts()) out[name] = Napi::Number::New(env, static_cast<double>(count));
    return out;
  });
}

// () => { toDevice, toHost }, since the start
Napi::Value transfers(const Napi::CallbackInfo& info) {
  const Transfers& counts = instance(info.Env()).transfers;
  Napi::Object out = Napi::Object::New(info.Env());
  out["toDevice"] = Napi::Number::New(info.Env(), static_cast<double>(counts.to_device));
  out["toHost"] = Napi::Number::New(info.Env(), static_cast<double>(counts.to_host));
  return out;
}

}  // namespace graft
