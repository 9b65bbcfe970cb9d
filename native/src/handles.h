// JavaScript refers to a native tensor by a small integer: an index into a table of one Node environment
// (main thread or worker). Integers cost nothing to pass, and the table knows which tensors are alive.
#pragma once
#include <set>

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

// The state of one Node environment.
struct Instance {
  Handles tensors;
  std::vector<at::Generator> generators;
  at::Generator random;  // for operators that are given no generator: other threads of the process have their own
  std::vector<struct Op> ops;
  Napi::FunctionReference make_error;  // (op, message, shapes) => Error
  std::set<std::shared_ptr<Napi::FunctionReference>> callbacks;  // of live graphs and leaves (autograd.cc)
  std::vector<std::shared_ptr<class ProcessGroup>> groups;
};

Instance& instance(Napi::Env env);

// Runs `body`; a C++ exception becomes a JavaScript error with the operation and the shapes of its tensors.
Napi::Value guarded(Napi::Env env, const std::string& op, const std::function<std::string()>& shapes,
                    const std::function<Napi::Value()>& body);

}  // namespace graft
