// The functions that the addon exports. src/engine/binding.ts has their types: change the two together.
#include <malloc.h>

#include <cstring>
#include <mutex>
#include <unordered_map>

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/AutogradState.h>

#include "autograd.h"
#include "cuda_kernels.h"
#include "device.h"
#include "dispatch.h"
#include "mapped.h"
#include "memory.h"
#include "process_group.h"
#include "mkl.h"

#include "ops/shared.h"

// Exported by libtorch_cpu where it is built with MKL.
extern "C" int MKL_Set_Num_Threads_Local(int count) __attribute__((weak));

namespace graft {

Instance& instance(Napi::Env env) { return *env.GetInstanceData<Instance>(); }

namespace {

// (names: "namespace::op" or "namespace::op.overload"): gives each operator its index, in order
Napi::Value resolve_ops(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "resolve", no_shapes, [&]() -> Napi::Value {
    const auto names = info[0].As<Napi::Array>();
    Instance& self = instance(env);
    self.ops.clear();
    for (uint32_t i = 0; i < names.Length(); i++) {
      const std::string full = Napi::Value(names[i]).As<Napi::String>();
      const auto dot = full.find('.');
      self.ops.push_back(resolve(full.substr(0, dot), dot == std::string::npos ? "" : full.substr(dot + 1)));
    }
    return env.Undefined();
  });
}

// (name) => the schema of an operator as text, for the code generator
Napi::Value schema(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "schema", no_shapes, [&]() -> Napi::Value {
    const std::string full = info[0].As<Napi::String>();
    const auto dot = full.find('.');
    const auto op = resolve(full.substr(0, dot), dot == std::string::npos ? "" : full.substr(dot + 1));
    std::ostringstream text;
    text << op.handle.schema();
    return Napi::String::New(env, text.str());
  });
}

// (shape, dtype code, device or undefined: that of new tensors, pinned or undefined) => handle of an uninitialised contiguous tensor. Pinned:
// memory of the host that a GPU copies from without the processor
Napi::Value empty(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "empty", no_shapes, [&]() -> Napi::Value {
    const auto shape = info[0].As<Napi::Array>();
    std::vector<int64_t> sizes(shape.Length());
    for (uint32_t i = 0; i < shape.Length(); i++) sizes[i] = Napi::Value(shape[i]).As<Napi::Number>().Int64Value();
    const auto dtype = static_cast<at::ScalarType>(info[1].As<Napi::Number>().Int32Value());
    Instance& self = instance(env);
    const at::Device device = info[2].IsString() ? at::Device(info[2].As<Napi::String>().Utf8Value()) : self.device;
    const auto options = at::TensorOptions(dtype).device(device).pinned_memory(info[3].ToBoolean());
    return Napi::Number::New(env, self.tensors.add(at::empty(sizes, options)));
  });
}

// (handles: Uint32Array, count)
Napi::Value free_handles(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "free", no_shapes, [&]() -> Napi::Value {
    const auto ids = info[0].As<Napi::Uint32Array>();
    const uint32_t count = info[1].As<Napi::Number>();
    Instance& self = instance(env);
    for (uint32_t i = 0; i < count; i++) self.tensors.free(ids[i]);
    return env.Undefined();
  });
}

// Tensors on their way from one Node environment of the process to another, by the number that was told.
struct Given {
  std::mutex mutex;
  std::unordered_map<uint32_t, std::vector<at::Tensor>> tensors;
  uint32_t next = 0;
};
Given& given() {
  static Given all;
  return all;
}

// (handles: Uint32Array) => number by which another environment takes tensors with the same memory
Napi::Value give(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "give", no_shapes, [&]() -> Napi::Value {
    const auto ids = info[0].As<Napi::Uint32Array>();
    std::vector<at::Tensor> tensors;
    for (size_t i = 0; i < ids.ElementLength(); i++) tensors.push_back(instance(env).tensors.get(ids[i]).detach());
    const std::lock_guard lock(given().mutex);
    const uint32_t number = given().next++;
    given().tensors.emplace(number, std::move(tensors));
    return Napi::Number::New(env, number);
  });
}

// (number) => handles: Uint32Array, once
Napi::Value take(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "take", no_shapes, [&]() -> Napi::Value {
    std::vector<at::Tensor> tensors;
    {
      const std::lock_guard lock(given().mutex);
      auto node = given().tensors.extract(info[0].As<Napi::Number>().Uint32Value());
      TORCH_CHECK(!node.empty(), "these tensors were taken before");
      tensors = std::move(node.mapped());
    }
    auto handles = Napi::Uint32Array::New(env, tensors.size());
    for (size_t i = 0; i < tensors.size(); i++) handles[i] = instance(env).tensors.add(std::move(tensors[i]));
    return handles;
  });
}

// (handle) => [dtype code, ...shape]
Napi::Value describe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "describe", no_shapes, [&]() -> Napi::Value {
    const at::Tensor& tensor = tensor_at(info, 0);
    Napi::Array out = Napi::Array::New(env, tensor.dim() + 1);
    out[0u] = Napi::Number::New(env, static_cast<int>(tensor.scalar_type()));
    for (int64_t i = 0; i < tensor.dim(); i++) {
      out[static_cast<uint32_t>(i + 1)] = Napi::Number::New(env, static_cast<double>(tensor.size(i)));
    }
    return out;
  });
}

// (handle) => "cpu", "cuda:0"
Napi::Value device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "device", no_shapes, [&]() -> Napi::Value {
    return Napi::String::New(info.Env(), tensor_at(info, 0).device().str());
  });
}

// (handle) => ArrayBuffer of the tensor's own memory, which is freed when the event loop turns. The tensor must be contiguous.
Napi::Value buffer(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "buffer", no_shapes, [&]() -> Napi::Value {
    at::Tensor tensor = tensor_at(info, 0).detach();
    TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous(), "only the memory of a contiguous tensor on the CPU can be viewed, and this one is on ", tensor.device());
    if (tensor.nbytes() == 0) return Napi::ArrayBuffer::New(env, 0);
    void* data = tensor.data_ptr();
    auto* owner = new at::Tensor(tensor);
    return Napi::ArrayBuffer::New(
        env, data, tensor.nbytes(), [](Napi::Env, void*, at::Tensor* reference) { delete reference; }, owner);
  });
}

// (handle, Uint8Array of as many bytes, true: copies into the tensor, false: out of it). The tensor must be contiguous.
Napi::Value copy(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "copy", no_shapes, [&]() -> Napi::Value {
    const at::Tensor tensor = tensor_at(info, 0).detach();
    auto bytes = info[1].As<Napi::Uint8Array>();
    TORCH_CHECK(tensor.is_contiguous(), "only a contiguous tensor can be read or written as bytes");
    TORCH_CHECK(bytes.ByteLength() == tensor.nbytes(), "the tensor has ", tensor.nbytes(), " bytes, but the array has ", bytes.ByteLength());
    const bool to_tensor = info[2].As<Napi::Boolean>();
    TORCH_CHECK(to_tensor || !tensor.is_meta(), "a tensor on meta has no numbers to read");
    Transfers& count = instance(env).transfers;
    (to_tensor ? count.to_device : count.to_host)++;
    if (tensor.nbytes() == 0) return env.Undefined();
    const at::Tensor array = at::from_blob(bytes.Data(), tensor.sizes(), at::TensorOptions(tensor.scalar_type()));
    const at::NoGradGuard without_grad;
    if (!tensor.device().is_cpu()) {
      to_tensor ? tensor.copy_(array) : array.copy_(tensor);
    } else if (to_tensor) {
      std::memcpy(tensor.data_ptr(), bytes.Data(), tensor.nbytes());
    } else {
      std::memcpy(bytes.Data(), tensor.const_data_ptr(), tensor.nbytes());
    }
    return env.Undefined();
  });
}

void move_memory(c10::StorageImpl& to, c10::StorageImpl& from) {
  at::DataPtr memory = from.set_data_ptr({nullptr, from.device()});
  const at::DataPtr former = to.set_data_ptr(std::move(memory));
  to.set_nbytes(from.nbytes());
  from.set_nbytes(0);
}

// (tensor, from): the storage of a tensor, and so of its views and of what a graph has saved of it, takes the memory of another, which is
// left empty. No version counts it as a change.
Napi::Value move_memory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "move memory", no_shapes, [&]() -> Napi::Value {
    c10::StorageImpl* const target = tensor_at(info, 0).storage().unsafeGetStorageImpl();
    move_memory(*target, *tensor_at(info, 1).storage().unsafeGetStorageImpl());
    return info.Env().Undefined();
  });
}

// (tensor) => its memory as a tensor of bytes; its storage is left empty
Napi::Value take_memory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "take memory", no_shapes, [&]() -> Napi::Value {
    const at::Tensor& source = tensor_at(info, 0);
    const at::Tensor bytes = at::empty({0}, source.options().dtype(at::kByte).requires_grad(false));
    c10::StorageImpl* const target = bytes.storage().unsafeGetStorageImpl();
    move_memory(*target, *source.storage().unsafeGetStorageImpl());
    bytes.unsafeGetTensorImpl()->set_sizes_contiguous({static_cast<int64_t>(target->nbytes())});
    return Napi::Number::New(env, instance(env).tensors.add(bytes));
  });
}

// (tensor) => whether something else reads its memory too
Napi::Value is_shared(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), tensor_at(info, 0).storage().use_count() > 1);
}

// (handle of a one-element tensor) => number
Napi::Value item(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "item", no_shapes, [&]() -> Napi::Value {
    TORCH_CHECK(!tensor_at(info, 0).is_meta(), "a tensor on meta has no numbers to read");
    instance(env).transfers.to_host++;
    return Napi::Number::New(env, tensor_at(info, 0).item().toDouble());
  });
}

// (seed: bigint) => generator index
Napi::Value generator(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "generator", no_shapes, [&]() -> Napi::Value {
    bool lossless;
    const uint64_t seed = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
    auto& list = instance(env).generators;
    const auto slot = std::find_if(list.begin(), list.end(), [](const at::Generator& g) { return !g.defined(); });
    const auto index = slot - list.begin();
    if (slot == list.end()) list.emplace_back();
    list[index] = at::make_generator<at::CPUGeneratorImpl>(seed);
    return Napi::Number::New(env, static_cast<double>(index));
  });
}

Napi::Value free_generator(const Napi::CallbackInfo& info) {
  auto& list = instance(info.Env()).generators;
  const uint32_t index = info[0].As<Napi::Number>();
  if (index < list.size()) list[index] = at::Generator();
  return info.Env().Undefined();
}

// (count or undefined) => the number of threads in use
Napi::Value threads(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "threads", no_shapes, [&]() -> Napi::Value {
    if (info[0].IsNumber()) {
      const int count = info[0].As<Napi::Number>().Int32Value();
      at::set_num_threads(count);
      // LibTorch sets MKL's number for the whole process; this thread's own takes precedence over it.
      if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(count);
    }
    return Napi::Number::New(env, at::get_num_threads());
  });
}

// () => { handles, bytes }
Napi::Value memory(const Napi::CallbackInfo& info) {
  const Handles& tensors = instance(info.Env()).tensors;
  Napi::Object out = Napi::Object::New(info.Env());
  out["handles"] = Napi::Number::New(info.Env(), static_cast<double>(tensors.live()));
  out["bytes"] = Napi::Number::New(info.Env(), static_cast<double>(tensors.bytes()));
  return out;
}

// () => { avx512, mkl }: whether our kernels, and MKL's products, are those for this processor's widest instructions
Napi::Value kernels(const Napi::CallbackInfo& info) {
  Napi::Object out = Napi::Object::New(info.Env());
  out["avx512"] = Napi::Boolean::New(info.Env(), has_avx512());
  out["mkl"] = Napi::Boolean::New(info.Env(), mkl_serv_intel_cpu_true() != 0);
  return out;
}

// Returns free heap pages to the system (after loading a model, before measuring).
Napi::Value trim(const Napi::CallbackInfo& info) {
  malloc_trim(0);
  return info.Env().Undefined();
}

Napi::Value on_error(const Napi::CallbackInfo& info) {
  instance(info.Env()).make_error = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  // A training step frees and allocates the same large blocks again and again: keep them instead of returning them to the
  // kernel each time, which costs a page fault per 4 KiB (20 % of PEFT's step on such work).
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
  use_heap_allocator();
  auto* state = new Instance();
  env.SetInstanceData(state);
  // Backward passes call JavaScript, which runs in this thread only: LibTorch's own threads for each GPU must not run them.
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
  const auto add = [&](const char* name, Napi::Value (*function)(const Napi::CallbackInfo&)) {
    exports[name] = Napi::Function::New(env, function, name);
  };
  add("resolve", resolve_ops);
  add("call", call);
  add("schema", schema);
  add("empty", empty);
  add("free", free_handles);
  add("give", give);
  add("take", take);
  add("describe", describe);
  add("device", device);
  add("buffer", buffer);
  add("copy", copy);
  add("item", item);
  add("moveMemory", move_memory);
  add("takeMemory", take_memory);
  add("isShared", is_shared);
  add("checkpoint", checkpoint);
  add("backward", backward);
  add("grad", grad);
  add("setGrad", set_grad);
  add("onGradient", on_gradient);
  add("requiresGrad", requires_grad);
  add("setRequiresGrad", set_requires_grad);
  add("setGradEnabled", set_grad_enabled);
  add("generator", generator);
  add("freeGenerator", free_generator);
  add("manualSeed", manual_seed);
  add("randomState", random_state);
  add("threads", threads);
  add("memory", memory);
  add("allocated", allocated);
  add("trim", trim);
  add("map", map_file);
  add("allocate", allocate_file);
  add("writeBack", write_back);
  add("storeOpen", store_open);
  add("storeSet", store_set);
  add("storeSetOnce", store_set_once);
  add("storeGet", store_get);
  add("addressTowards", address_towards);
  add("groupConnect", group_connect);
  add("groupWait", group_wait);
  add("groupClose", group_close);
  add("kernels", kernels);
  add("cudaDriver", cuda_driver);
  add("loadCuda", load_cuda);
  add("loadNvrtc", load_nvrtc);
  add("compileKernels", compile_kernels);
  add("useHostKernels", use_host_kernels);
  add("useDevice", use_device);
  add("roundProducts", round_products);
  add("to", to_device);
  add("deviceMemory", device_memory);
  add("hasKernel", has_kernel);
  add("recordOperators", record_operators);
  add("transfers", transfers);
  add("onError", on_error);
  return exports;
}

}  // namespace
}  // namespace graft

static Napi::Object start(Napi::Env env, Napi::Object exports) { return graft::init(env, exports); }
NODE_API_MODULE(graft, start)
