#include "handles.h"

#include <unordered_set>

namespace graft {

uint32_t Handles::add(at::Tensor tensor) {
  if (free_.empty()) {
    slots_.push_back(std::move(tensor));
    return static_cast<uint32_t>(slots_.size() - 1);
  }
  const uint32_t id = free_.back();
  free_.pop_back();
  slots_[id] = std::move(tensor);
  return id;
}

const at::Tensor& Handles::get(uint32_t id) const {
  TORCH_CHECK(id < slots_.size() && slots_[id].defined(), "this tensor was disposed");
  return slots_[id];
}

void Handles::free(uint32_t id) {
  get(id);
  slots_[id] = at::Tensor();
  free_.push_back(id);
}

size_t Handles::bytes() const {
  std::unordered_set<const void*> seen;
  size_t total = 0;
  for (const auto& tensor : slots_) {
    if (!tensor.defined() || !tensor.has_storage()) continue;
    if (seen.insert(tensor.storage().unsafeGetStorageImpl()).second) total += tensor.storage().nbytes();
  }
  return total;
}

Napi::Value guarded(Napi::Env env, const std::string& op, const std::function<std::string()>& shapes,
                    const std::function<Napi::Value()>& body) {
  std::string message;
  try {
    return body();
  } catch (const Napi::Error& error) {
    error.ThrowAsJavaScriptException();
    return env.Undefined();
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
    message = "unknown native exception";
  }
  Napi::FunctionReference& make = instance(env).make_error;
  if (make.IsEmpty()) {
    Napi::Error::New(env, op + ": " + message).ThrowAsJavaScriptException();
  } else {
    const Napi::Value error =
        make.Call({Napi::String::New(env, op), Napi::String::New(env, message), Napi::String::New(env, shapes())});
    napi_throw(env, error);
  }
  return env.Undefined();
}

}  // namespace graft
