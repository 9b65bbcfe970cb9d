#include "cuda_kernels.h"

#include <dlfcn.h>

#include <fstream>
#include <map>
#include <sstream>

#include <ATen/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "driver.h"
#include "handles.h"

namespace graft {
namespace {

// NVRTC, and the folder of the kernels' sources. Source of the functions: nvrtc.h.
struct Compiler {
  void* library = nullptr;
  std::string sources;

  template <typename... Args>
  int call(const char* name, Args... args) const {
    const auto function = reinterpret_cast<int (*)(Args...)>(dlsym(library, name));
    TORCH_CHECK(function, "NVRTC has no function ", name);
    return function(args...);
  }
};

Compiler& compiler() {
  static Compiler one;
  return one;
}

struct Compiled {
  std::string binary, log;
  std::vector<std::string> symbols;  // the names of the instances in the binary
};

// Compiles instances of kernels of one file for an architecture such as sm_90.
Compiled compile(const std::string& file, const std::vector<std::string>& instances, const std::string& architecture) {
  const Compiler& nvrtc = compiler();
  TORCH_CHECK(nvrtc.library, "NVRTC is not loaded");
  std::ifstream in(nvrtc.sources + "/" + file);
  std::stringstream source;
  source << in.rdbuf();
  TORCH_CHECK(in, nvrtc.sources, "/", file, " cannot be read");
  const std::string text = source.str(), include = "--include-path=" + nvrtc.sources, chip = "--gpu-architecture=" + architecture;
  void* program = nullptr;
  TORCH_CHECK(nvrtc.call("nvrtcCreateProgram", &program, text.c_str(), file.c_str(), 0, static_cast<const char* const*>(nullptr),
                         static_cast<const char* const*>(nullptr)) == 0,
              "NVRTC does not start");
  const std::shared_ptr<void> freed(program, [&](void* p) { nvrtc.call("nvrtcDestroyProgram", &p); });
  const char* options[] = {chip.c_str(), include.c_str(), "--std=c++17", "--ptxas-options=-v"};
  for (const std::string& instance : instances) nvrtc.call("nvrtcAddNameExpression", program, instance.c_str());
  const int code = nvrtc.call("nvrtcCompileProgram", program, 4, static_cast<const char* const*>(options));
  Compiled out;
  size_t bytes = 0;
  nvrtc.call("nvrtcGetProgramLogSize", program, &bytes);
  out.log.resize(bytes);
  nvrtc.call("nvrtcGetProgramLog", program, out.log.data());
  TORCH_CHECK(code == 0, file, " does not compile for ", architecture, ": ", out.log.c_str());
  for (const std::string& instance : instances) {
    const char* symbol = nullptr;
    TORCH_CHECK(nvrtc.call("nvrtcGetLoweredName", program, instance.c_str(), &symbol) == 0, file, " has no kernel ", instance);
    out.symbols.push_back(symbol);
  }
  nvrtc.call("nvrtcGetCUBINSize", program, &bytes);
  out.binary.resize(bytes);
  TORCH_CHECK(nvrtc.call("nvrtcGetCUBIN", program, out.binary.data()) == 0 && bytes > 0, "NVRTC made no code of ", file);
  return out;
}

// Loads a kernel on the current device, whose context LibTorch has made current.
void* load(const Driver& driver, int device, const char* file, const std::string& instance) {
  int gpu = 0, major = 0, minor = 0;
  driver.call("cuDeviceGet", &gpu, device);
  driver.call("cuDeviceGetAttribute", &major, kComputeCapabilityMajor, gpu);
  driver.call("cuDeviceGetAttribute", &minor, kComputeCapabilityMinor, gpu);
  const Compiled compiled = compile(file, {instance}, "sm_" + std::to_string(major) + std::to_string(minor));
  void *module = nullptr, *function = nullptr;
  int code = driver.call("cuModuleLoadData", &module, static_cast<const void*>(compiled.binary.data()));
  if (code == 0) code = driver.call("cuModuleGetFunction", &function, module, compiled.symbols[0].c_str());
  TORCH_CHECK(code == 0, instance, " of ", file, " does not load: ", driver.error(code));
  return function;
}

// The kernels of a library that were compiled for the processor (tests), by this thread's choice; null: those of GPUs.
thread_local void* host_kernels = nullptr;

void launch_on_host(const std::string& instance, Grid grid, int threads, void** arguments) {
  std::string symbol = "run_";
  for (const char c : instance) symbol += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  const auto run = reinterpret_cast<void (*)(unsigned, unsigned, unsigned, unsigned, void**)>(dlsym(host_kernels, symbol.c_str()));
  TORCH_CHECK(run, "the library of kernels has no ", symbol);
  run(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z), static_cast<unsigned>(threads), arguments);
}

}  // namespace

bool runs_cuda_kernels(const at::Tensor& tensor) { return tensor.is_cuda() || (host_kernels && tensor.is_cpu()); }

const char* number_name(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "kernels compute with float32 and bfloat16, got ", type);
  return type == at::kFloat ? "float" : "Bfloat16";
}

std::string instance_of(const char* kernel, std::initializer_list<std::string> types) {
  std::string name = std::string(kernel) + "<";
  for (const std::string& type : types) name += (name.back() == '<' ? "" : ", ") + type;
  return name + ">";
}

int numbers_at_once(int64_t c, std::initializer_list<at::Tensor> tensors) {
  int64_t least = 16;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) least = std::min(least, static_cast<int64_t>(tensor.element_size()));
  }
  const int64_t n = 16 / least;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined() && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 != 0) return 1;
  }
  return c % n == 0 ? static_cast<int>(n) : 1;
}

void launch_kernel(const at::Tensor& on, const char* file, const std::string& instance, Grid grid, int threads, void** arguments) {
  TORCH_CHECK(grid.x < (1LL << 31) && grid.y < 65536 && grid.z < 65536, instance, " would need ", grid.x, " x ", grid.y, " x ", grid.z, " blocks");
  if (!on.is_cuda()) return launch_on_host(instance, grid, threads, arguments);
  static const Driver driver;
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, void*> functions;
  const at::DeviceGuard guard(on.device());
  void* function;
  {
    const std::lock_guard lock(mutex);
    void*& known = functions[{on.get_device(), instance}];
    if (!known) known = load(driver, on.get_device(), file, instance);
    function = known;
  }
  const c10::impl::VirtualGuardImpl devices(c10::DeviceType::CUDA);
  void* stream = devices.getStreamNativeHandle(devices.getStream(on.device()));
  const int code = driver.call("cuLaunchKernel", function, static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z),
                               static_cast<unsigned>(threads), 1u, 1u, 0u, stream, arguments, static_cast<void**>(nullptr));
  TORCH_CHECK(code == 0, instance, " of ", file, " does not start: ", driver.error(code));
}

// (paths of libraries that NVRTC opens by name, and its own as the last; folder of the kernels' sources)
Napi::Value load_nvrtc(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "CUDA", no_shapes, [&]() -> Napi::Value {
    const auto paths = info[0].As<Napi::Array>();
    Compiler& nvrtc = compiler();
    for (uint32_t i = 0; i < paths.Length(); i++) {
      nvrtc.library = dlopen(Napi::Value(paths[i]).As<Napi::String>().Utf8Value().c_str(), RTLD_LAZY | RTLD_LOCAL);
      TORCH_CHECK(nvrtc.library, dlerror());
    }
    nvrtc.sources = info[1].As<Napi::String>();
    return env.Undefined();
  });
}

// (file, instances of its kernels, architecture such as sm_90) => { log: with the registers that they take, symbols: their names there }
Napi::Value compile_kernels(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "kernel", no_shapes, [&]() -> Napi::Value {
    const auto names = info[1].As<Napi::Array>();
    std::vector<std::string> instances;
    for (uint32_t i = 0; i < names.Length(); i++) instances.push_back(Napi::Value(names[i]).As<Napi::String>());
    const Compiled compiled = compile(info[0].As<Napi::String>(), instances, info[2].As<Napi::String>());
    Napi::Object out = Napi::Object::New(env);
    out["log"] = Napi::String::New(env, compiled.log.c_str());
    Napi::Array symbols = Napi::Array::New(env, instances.size());
    for (uint32_t i = 0; i < instances.size(); i++) symbols[i] = Napi::String::New(env, compiled.symbols[i]);
    out["symbols"] = symbols;
    return out;
  });
}

// (path of a library, or undefined): operators of this thread that have kernels for GPUs take those of the library on the processor
Napi::Value use_host_kernels(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "kernels", no_shapes, [&]() -> Napi::Value {
    host_kernels = nullptr;
    if (info[0].IsString()) {
      host_kernels = dlopen(info[0].As<Napi::String>().Utf8Value().c_str(), RTLD_NOW | RTLD_LOCAL);
      TORCH_CHECK(host_kernels, dlerror());
    }
    return env.Undefined();
  });
}

}  // namespace graft
