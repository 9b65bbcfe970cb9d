// JavaScript holds a native tensor as a small integer: an index into a table that belongs to one Node environment
// (main thread or worker). Integers cost nothing to pass, and the table knows at any moment what is alive.
#pragma once
#include <set>

#include "torch.h"

namespace graft {

class Handles {
 public:
  uint32_t add(at::Tensor tensor);
  const at::Tensor& get(uint32_t id) const;  // throws c10::Error for an id that was freed or never given
  void free(uint32_t id);                    // freeing twice is an error: it would free somebody else's tensor

  size_t live() const { return slots_.size() - free_.size(); }
  size_t bytes() const;  // of distinct storages

 private:
  std::vector<at::Tensor> slots_;
  std::vector<uint32_t> free_;
};

// State of one Node environment.
struct Instance {
  Handles tensors;
  std::vector<at::Generator> generators;
  std::vector<struct Op> ops;
  Napi::FunctionReference make_error;  // (op, message, shapes) => Error
  std::set<std::shared_ptr<Napi::FunctionReference>> replays;  // of graphs that are alive (autograd.cc)
};

Instance& instance(Napi::Env env);

// Runs `body`; a C++ exception becomes a JavaScript error that names the operation and its tensors' shapes.
Napi::Value guarded(Napi::Env env, const std::string& op, const std::function<std::string()>& shapes,
                    const std::function<Napi::Value()>& body);

}  // namespace graft
