// JavaScript refers to a native tensor by a small integer: an index into a table of one Node environment
// (main thread or worker). Integers cost nothing to pass, and the table knows which tensors are alive.
#pragma once
#include <set>
#include <unordered_map>

#include "torch.h"

namespace graft {

class Handles {
 public:
  uint32_t add(at::Tensor tensor);
  const at::Tensor& get(uint32_t id) const;  // throws c10::Error for an id that is not in use
  void free(uint32_t id);                    // to free twice is an error: it could free another tensor

  size_t live() const { return slots_.size() - free_.size(); }
  size_t bytes() const;  // of distinct storages

 private:
  std::vector<at::Tensor> slots_;
  std::vector<uint32_t> free_;
};

// How often numbers went from JavaScript, or another device, to tensors, and came back. A read makes the host wait for the device. The
// processor counts as a device, so that a run without a GPU shows how often one with a GPU would wait.
struct Transfers {
  int64_t to_device = 0, to_host = 0;
};

// The state of one Node environment.
struct Instance {
  Handles tensors;
  std::vector<at::Generator> generators;
  at::Device device{at::kCPU};  // of new tensors
  std::unordered_map<at::Device, at::Generator> random;  // of each device; other threads of the process have their own (device.cc)
  uint64_t seed = c10::default_rng_seed_val;             // of those that do not exist yet
  Transfers transfers;
  std::vector<struct Op> ops;
  Napi::FunctionReference make_error;  // (op, message, shapes) => Error
  std::set<std::shared_ptr<Napi::FunctionReference>> callbacks;  // of live graphs and leaves (autograd.cc)
  std::vector<std::shared_ptr<class ProcessGroup>> groups;
};

Instance& instance(Napi::Env env);

inline const at::Tensor& tensor_at(const Napi::CallbackInfo& info, size_t i) {
  return instance(info.Env()).tensors.get(info[i].As<Napi::Number>().Uint32Value());
}

// Runs `body`; a C++ exception becomes a JavaScript error with the operation and the shapes of its tensors.
Napi::Value guarded(Napi::Env env, const std::string& op, const std::function<std::string()>& shapes,
                    const std::function<Napi::Value()>& body);

inline std::string no_shapes() { return {}; }

}  // namespace graft
