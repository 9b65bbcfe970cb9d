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

namespace {

constexpr const char* kGluFile = "glu.cu";
constexpr int kGluThreads = 256;

std::string glu_instance(const char* kernel, const Tensor& gate, int at_once) {
  return instance_of(kernel, {number_name(gate.scalar_type()), std::to_string(at_once)});
}

int code_of(Activation act) { return act == Activation::kSilu ? 0 : 1; }

}  // namespace

Tensor glu_input(const Tensor& tensor, const Tensor& other) {
  return runs_cuda_kernels(tensor) ? tensor.to(c10::promoteTypes(tensor.scalar_type(), other.scalar_type())).contiguous() : tensor;
}

Tensor glu_forward(const Tensor& gate, const Tensor& up, Activation act) {
  check_number(gate, "gate");
  check_number(up, "up");
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.is_contiguous() && up.is_contiguous(), "gate and up must be contiguous and have the same shape, got ", gate.sizes(), " and ", up.sizes());
  Tensor y = at::empty_like(gate);
  const int64_t n = gate.numel();
  if (runs_cuda_kernels(gate)) {
    const int at_once = numbers_at_once(n, {gate, up});
    launch(gate, kGluFile, glu_instance("glu_forward", gate, at_once), {ceil_div(n, kGluThreads * at_once)}, kGluThreads, code_of(act), memory_of(gate), memory_of(up), n,
           memory_of(y));
    return y;
  }
  const auto& kernels = pick(avx512::glu, avx2::glu);
  at::parallel_for(0, n, 16384, [&](int64_t begin, int64_t end) {
    kernels.forward(act, gate.const_data_ptr<float>(), up.const_data_ptr<float>(), begin, end, y.mutable_data_ptr<float>());
  });
  return y;
}

std::pair<Tensor, Tensor> glu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Activation act) {
  Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
  if (runs_cuda_kernels(gate)) {
    const Tensor g = dy.to(gate.scalar_type()).contiguous();
    const int64_t n = g.numel();
    const int at_once = numbers_at_once(n, {gate, up, g});
    launch(gate, kGluFile, glu_instance("glu_backward", gate, at_once), {ceil_div(n, kGluThreads * at_once)}, kGluThreads, code_of(act), memory_of(gate), memory_of(up),
           memory_of(g), n, memory_of(dgate), memory_of(dup));
    return {dgate, dup};
  }
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

Tensor glu(const Tensor& gate, const Tensor& up, std::string_view act) {
  return Glu::apply(glu_input(gate, up), glu_input(up, gate), act);
}

TORCH_LIBRARY_FRAGMENT(graft, m) { m.def("glu(Tensor gate, Tensor up, str act) -> Tensor", glu); }

}  // namespace
}  // namespace graft
