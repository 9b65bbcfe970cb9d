#include "kernels/glu.h"

#include "shared.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const GluKernels& kernels() { return pick(avx512::glu, avx2::glu); }

Activation activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  TORCH_CHECK(name == "gelu_tanh", "no fused gate with the activation '", name, "'");
  return Activation::kGeluTanh;
}

struct Glu : torch::autograd::Function<Glu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up, std::string_view name) {
    check_float(gate, "gate");
    check_float(up, "up");
    TORCH_CHECK(gate.sizes() == up.sizes() && gate.is_contiguous() && up.is_contiguous(), "gate and up must be contiguous and of one shape");
    Tensor y = at::empty_like(gate);
    const Activation act = activation(name);
    at::parallel_for(0, gate.numel(), 16384, [&](int64_t begin, int64_t end) {
      kernels().forward(act, gate.const_data_ptr<float>(), up.const_data_ptr<float>(), begin, end, y.mutable_data_ptr<float>());
    });
    ctx->save_for_backward({gate, up});
    ctx->saved_data["act"] = static_cast<int64_t>(act);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor dy = grads[0].contiguous();
    Tensor dgate = at::empty_like(saved[0]), dup = at::empty_like(saved[1]);
    at::parallel_for(0, dy.numel(), 16384, [&](int64_t begin, int64_t end) {
      kernels().backward(static_cast<Activation>(ctx->saved_data["act"].toInt()), saved[0].const_data_ptr<float>(), saved[1].const_data_ptr<float>(),
                         dy.const_data_ptr<float>(), begin, end, dgate.mutable_data_ptr<float>(), dup.mutable_data_ptr<float>());
    });
    return {dgate, dup, {}};
  }
};

Tensor glu(const Tensor& gate, const Tensor& up, std::string_view act) { return Glu::apply(gate, up, act); }

TORCH_LIBRARY_FRAGMENT(graft, m) { m.def("glu(Tensor gate, Tensor up, str act) -> Tensor", glu); }

}  // namespace
}  // namespace graft
