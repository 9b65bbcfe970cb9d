#include "autograd.h"

#include <thread>

#include <torch/csrc/autograd/functions/utils.h>

namespace graft {
namespace {

std::vector<at::Tensor> tensors_at(const Napi::CallbackInfo& info, size_t i) {
  const auto ids = info[i].As<Napi::Array>();
  std::vector<at::Tensor> out(ids.Length());
  for (uint32_t j = 0; j < ids.Length(); j++) out[j] = instance(info.Env()).tensors.get(Napi::Value(ids[j]).As<Napi::Number>().Uint32Value());
  return out;
}

// A JavaScript function that a graph or a tensor refers to, and that is called during a backward pass. The environment owns it, because both
// can outlive the environment: a failed backward pass leaves nodes in LibTorch's queue.
class Callback {
 public:
  explicit Callback(Napi::Function function) : thread_(std::this_thread::get_id()), env_(function.Env()) {
    const auto reference = std::make_shared<Napi::FunctionReference>(Napi::Persistent(function));
    instance(env_).callbacks.insert(reference);
    reference_ = reference;
  }

  Callback(const Callback&) = delete;
  ~Callback() { forget(); }

  bool forgotten() const { return reference_.expired(); }

  void forget() {
    if (const auto reference = reference_.lock()) instance(env_).callbacks.erase(reference);
  }

  // An error of the function is thrown as it is. Call it in the thread of the environment only.
  template <typename... Tensors>
  void call(const Tensors&... tensors) const {
    TORCH_CHECK(std::this_thread::get_id() == thread_, "a backward pass can only call JavaScript in the thread of its forward pass");
    const auto function = reference_.lock();
    if (!function) return;
    const Napi::HandleScope scope(env_);
    function->Call({handles_of(tensors)...});
  }

 private:
  Napi::Value handles_of(const std::vector<at::Tensor>& tensors) const {
    Napi::Array out = Napi::Array::New(env_, tensors.size());
    for (uint32_t i = 0; i < tensors.size(); i++) {
      out[i] = tensors[i].defined() ? Napi::Number::New(env_, instance(env_).tensors.add(tensors[i])) : env_.Null();
    }
    return out;
  }

  std::weak_ptr<Napi::FunctionReference> reference_;
  std::thread::id thread_;
  Napi::Env env_;
};

// A part of the forward pass of which only the inputs are saved. In the backward pass `replay`, a JavaScript function, computes it again
// from leaves that replace the inputs, and runs a nested backward pass, which sets the gradients of the leaves.
class Checkpoint : public torch::autograd::Node {
 public:
  Checkpoint(const std::vector<at::Tensor>& inputs, Napi::Function replay)
      : Node(torch::autograd::collect_next_edges(inputs)), replay_(replay) {
    for (const at::Tensor& input : inputs) inputs_.emplace_back(input, false);
  }

  std::vector<at::Tensor> apply(std::vector<at::Tensor>&& gradients) override {
    TORCH_CHECK(!replay_.forgotten(), torch::autograd::ERR_BACKWARD_TWICE);
    std::vector<at::Tensor> leaves;
    for (const auto& saved : inputs_) {
      const at::Tensor input = saved.unpack();
      leaves.push_back(input.detach().set_requires_grad(input.requires_grad()));
    }
    replay_.call(leaves, gradients);
    for (at::Tensor& leaf : leaves) leaf = leaf.grad();
    return leaves;
  }

  void release_variables() override {
    for (auto& saved : inputs_) saved.reset_data();
    replay_.forget();
  }

 private:
  std::vector<torch::autograd::SavedVariable> inputs_;
  Callback replay_;
};

// Calls JavaScript when a backward pass has added all of its terms to the gradient of a leaf: once, however often the leaf was used.
class GradientHook : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit GradientHook(Napi::Function hook) : hook_(hook) {}
  void operator()(const at::Tensor& /*leaf*/) override { hook_.call(); }

 private:
  Callback hook_;
};

}  // namespace

// (inputs, outputs, replay: (inputs, gradients of the outputs or null) => void) => the outputs as new tensors whose only history is the checkpoint
Napi::Value checkpoint(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "checkpoint", [] { return std::string(); }, [&]() -> Napi::Value {
    const auto outputs = tensors_at(info, 1);
    const std::shared_ptr<Checkpoint> node(new Checkpoint(tensors_at(info, 0), info[2].As<Napi::Function>()), torch::autograd::deleteNode);
    Napi::Array out = Napi::Array::New(env, outputs.size());
    for (uint32_t i = 0; i < outputs.size(); i++) {
      const at::Tensor output = outputs[i].detach();
      torch::autograd::set_history(output, node);
      out[i] = Napi::Number::New(env, instance(env).tensors.add(output));
    }
    return out;
  });
}

// (roots, their gradients, or none for scalars): adds to .grad of the leaves and frees the graph
Napi::Value backward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "backward", [] { return std::string(); }, [&]() -> Napi::Value {
    torch::autograd::backward(tensors_at(info, 0), tensors_at(info, 1));
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

// (leaf, hook: () => void, or null): is called when a backward pass has completed the leaf's gradient; it replaces an earlier one
Napi::Value on_gradient(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "onGradient", [] { return std::string(); }, [&]() -> Napi::Value {
    const at::Tensor& tensor = tensor_at(info, 0);
    TORCH_CHECK(tensor.is_leaf(), "only the gradient of a leaf can be waited for");
    std::unique_ptr<GradientHook> hook;
    if (info[1].IsFunction()) hook = std::make_unique<GradientHook>(info[1].As<Napi::Function>());
    torch::autograd::impl::set_post_acc_grad_hooks(tensor, std::move(hook));
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

// (flag) => the flag before
Napi::Value set_grad_enabled(const Napi::CallbackInfo& info) {
  const bool before = c10::GradMode::is_enabled();
  c10::GradMode::set_enabled(info[0].As<Napi::Boolean>());
  return Napi::Boolean::New(info.Env(), before);
}

}  // namespace graft
