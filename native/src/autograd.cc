#include "autograd.h"

namespace graft {
namespace {

const at::Tensor& tensor_at(const Napi::CallbackInfo& info, size_t i) {
  return instance(info.Env()).tensors.get(info[i].As<Napi::Number>().Uint32Value());
}

}  // namespace

// (root, gradient of the root or undefined for a scalar): fills .grad of the leaves and frees the graph
Napi::Value backward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "backward", [] { return std::string(); }, [&]() -> Napi::Value {
    std::vector<at::Tensor> seeds;
    if (info[1].IsNumber()) seeds.push_back(tensor_at(info, 1));
    torch::autograd::backward({tensor_at(info, 0)}, seeds);
    return env.Undefined();
  });
}

// (tensor) => handle of its gradient, or null
Napi::Value grad(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "grad", [] { return std::string(); }, [&]() -> Napi::Value {
    const at::Tensor& gradient = tensor_at(info, 0).grad();
    if (!gradient.defined()) return env.Null();
    return Napi::Number::New(env, instance(env).tensors.add(gradient));
  });
}

// (tensor, gradient or null)
Napi::Value set_grad(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "set grad", [] { return std::string(); }, [&]() -> Napi::Value {
    tensor_at(info, 0).mutable_grad() = info[1].IsNumber() ? tensor_at(info, 1) : at::Tensor();
    return env.Undefined();
  });
}

// (tensor, flag)
Napi::Value set_requires_grad(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "requires_grad", [] { return std::string(); }, [&]() -> Napi::Value {
    tensor_at(info, 0).set_requires_grad(info[1].As<Napi::Boolean>());
    return env.Undefined();
  });
}

// (tensor) => flag
Napi::Value requires_grad(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "requires_grad", [] { return std::string(); }, [&]() -> Napi::Value {
    return Napi::Boolean::New(env, tensor_at(info, 0).requires_grad());
  });
}

// (flag) => what it was
Napi::Value set_grad_enabled(const Napi::CallbackInfo& info) {
  const bool before = c10::GradMode::is_enabled();
  c10::GradMode::set_enabled(info[0].As<Napi::Boolean>());
  return Napi::Boolean::New(info.Env(), before);
}

}  // namespace graft
