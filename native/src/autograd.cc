#include "autograd.h"

#include <thread>

#include <torch/csrc/autograd/functions/utils.h>

namespace graft {
namespace {

const at::Tensor& tensor_at(const Napi::CallbackInfo& info, size_t i) {
  return instance(info.Env()).tensors.get(info[i].As<Napi::Number>().Uint32Value());
}

std::vector<at::Tensor> tensors_at(const Napi::CallbackInfo& info, size_t i) {
  const auto ids = info[i].As<Napi::Array>();
  std::vector<at::Tensor> out(ids.Length());
  for (uint32_t j = 0; j < ids.Length(); j++) out[j] = instance(info.Env()).tensors.get(Napi::Value(ids[j]).As<Napi::Number>().Uint32Value());
  return out;
}

// A part of the forward pass of which only the inputs are saved. In the backward pass `replay`, a JavaScript function, computes it again
// from leaves that replace the inputs, and runs a nested backward pass, which sets the gradients of the leaves.
class Checkpoint : public torch::autograd::Node {
 public:
  Checkpoint(const std::vector<at::Tensor>& inputs, Napi::Function replay)
      : Node(torch::autograd::collect_next_edges(inputs)),
        thread_(std::this_thread::get_id()),
        env_(replay.Env()) {
    for (const at::Tensor& input : inputs) inputs_.emplace_back(input, false);
    const auto reference = std::make_shared<Napi::FunctionReference>(Napi::Persistent(replay));
    instance(env_).replays.insert(reference);
    replay_ = reference;
  }

  ~Checkpoint() override { forget(); }

  std::vector<at::Tensor> apply(std::vector<at::Tensor>&& gradients) override {
    TORCH_CHECK(std::this_thread::get_id() == thread_, "a checkpoint can only be replayed in the thread of its forward pass");
    std::vector<at::Tensor> leaves;
    for (const auto& saved : inputs_) {
      const at::Tensor input = saved.unpack();
      leaves.push_back(input.detach().set_requires_grad(input.requires_grad()));
    }
    const auto replay = replay_.lock();
    TORCH_CHECK(replay, torch::autograd::ERR_BACKWARD_TWICE);
    const Napi::HandleScope scope(env_);
    replay->Call({handles_of(leaves), handles_of(gradients)});
    for (at::Tensor& leaf : leaves) leaf = leaf.grad();
    return leaves;
  }

  void release_variables() override {
    for (auto& saved : inputs_) saved.reset_data();
    forget();
  }

 private:
  // The environment owns the function, because a graph can outlive the environment: a failed backward pass leaves nodes in LibTorch's queue.
  void forget() {
    if (const auto reference = replay_.lock()) instance(env_).replays.erase(reference);
  }

  Napi::Value handles_of(const std::vector<at::Tensor>& tensors) {
    Napi::Array out = Napi::Array::New(env_, tensors.size());
    for (uint32_t i = 0; i < tensors.size(); i++) {
      out[i] = tensors[i].defined() ? Napi::Number::New(env_, instance(env_).tensors.add(tensors[i])) : env_.Null();
    }
    return out;
  }

  std::vector<torch::autograd::SavedVariable> inputs_;
  std::weak_ptr<Napi::FunctionReference> replay_;
  std::thread::id thread_;
  Napi::Env env_;
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
