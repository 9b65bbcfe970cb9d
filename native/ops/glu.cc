#include "glu.h"

namespace graft {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Activation activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  TORCH_CHECK(name == "gelu_tanh", "no fused gated linear unit has the activation '", name, "'");
  return Activation::kGeluTanh;
}

Tensor glu_forward(const Tensor& gate, const Tensor& up, Activation act) {
  check_float(gate, "gate");
  check_float(up, "up");
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.is_contiguous() && up.is_contiguous(), "gate and up must be contiguous and have the same shape, got ", gate.sizes(), " and ", up.sizes());
  Tensor y = at::empty_like(gate);
  const auto& kernels = pick(avx512::glu, avx2::glu);
  at::parallel_for(0, gate.numel(), 16384, [&](int64_t begin, int64_t end) {
    kernels.forward(act, gate.const_data_ptr<float>(), up.const_data_ptr<float>(), begin, end, y.mutable_data_ptr<float>());
  });
  return y;
}

std::pair<Tensor, Tensor> glu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Activation act) {
  Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
  const auto& kernels = pick(avx512::glu, avx2::glu);
  at::parallel_for(0, dy.numel(), 16384, [&](int64_t begin, int64_t end) {
    kernels.backward(act, gate.const_data_ptr<float>(), up.const_data_ptr<float>(), dy.const_data_ptr<float>(), begin, end,
                     dgate.mutable_data_ptr<float>(), dup.mutable_data_ptr<float>());
  });
  return {dgate, dup};
}

namespace {

struct Glu : torch::autograd::Function<Glu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up, std::string_view name) {
    const Activation act = activation(name);
    ctx->save_for_backward({gate, up});
    ctx->saved_data["act"] = static_cast<int64_t>(act);
    return glu_forward(gate, up, act);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    auto [dgate, dup] = glu_backward(saved[0], saved[1], grads[0].contiguous(), static_cast<Activation>(ctx->saved_data["act"].toInt()));
    return {dgate, dup, {}};
  }
};

Tensor glu(const Tensor& gate, const Tensor& up, std::string_view act) { return Glu::apply(gate, up, act); }

TORCH_LIBRARY_FRAGMENT(graft, m) { m.def("glu(Tensor gate, Tensor up, str act) -> Tensor", glu); }

}  // namespace
}  // namespace graft
