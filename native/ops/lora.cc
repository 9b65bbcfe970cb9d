#include "lora.h"

#include "glu.h"
#include "lowrank.h"
#include "product.h"

namespace graft {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::pair<Tensor, Tensor> backward_products(const Tensor& g, const Tensor& h, const Tensor& b) {
  if (runs_cuda_kernels(g)) return {rank_product(g, b.t()), factor_gradient(h, g).t()};
  const int64_t n = g.size(0), out = g.size(1), r = h.size(1), padded = (r + 7) / 8 * 8;
  if (r > 64) return {at::mm(g, b), at::mm(g.t(), h)};  // wide enough for the general product
  Tensor b_t = at::zeros({padded, out}, b.options());
  b_t.narrow(0, 0, r).copy_(b.t());
  Tensor h_padded = h;
  if (padded != r) {
    h_padded = at::zeros({n, padded}, h.options());
    h_padded.narrow(1, 0, r).copy_(h);
  }
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), n / 32));
  Tensor dh = at::empty({n, padded}, h.options());
  Tensor db_t = at::zeros({threads, padded, out}, b.options());
  const auto& kernels = lowrank_kernels();
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) {
      kernels.backward(g.const_data_ptr<float>(), g.stride(0), h_padded.const_data_ptr<float>(), b_t.const_data_ptr<float>(), n * t / threads,
                       n * (t + 1) / threads, out, padded, dh.mutable_data_ptr<float>(), db_t.mutable_data_ptr<float>() + t * padded * out);
    }
  });
  return {padded == r ? dh : dh.narrow(1, 0, r).contiguous(), db_t.sum(0).narrow(0, 0, r).t().contiguous()};
}

void check_update(const Tensor& a, const Tensor& b, int64_t out, int64_t in) {
  check_number(a, "A");
  check_number(b, "B");
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(0) == b.size(1) && a.size(1) == in && b.size(0) == out, "A must have the shape [r, ", in,
              "] and B [", out, ", r], got ", a.sizes(), " and ", b.sizes());
}

void merge_rows(const float* weight, const Tensor& a, const Tensor& b, double scaling, int64_t first, int64_t n, float* to) {
  lowrank_kernels().merge(weight, a.const_data_ptr<float>(), b.const_data_ptr<float>() + first * b.size(1), static_cast<float>(scaling), n, a.size(1),
                          b.size(1), to);
}

namespace {

// W + s B A: the weight that a merge writes and that the fused operators round.
struct LoraWeight : torch::autograd::Function<LoraWeight> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& a, const Tensor& b, double scaling) {
    for (const auto& [tensor, name] : {std::pair{weight, "weight"}, std::pair{a, "A"}, std::pair{b, "B"}}) check_float(tensor, name);
    TORCH_CHECK(weight.dim() == 2, "weight must be a matrix, got ", weight.sizes());
    check_update(a, b, weight.size(0), weight.size(1));
    ctx->save_for_backward({a, b});
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["dweight"] = weight.requires_grad();
    const Tensor w = weight.contiguous(), a_rows = a.contiguous(), b_rows = b.contiguous();
    Tensor merged = at::empty_like(w);
    const int64_t in = w.size(1);
    at::parallel_for(0, w.size(0), grain(in * std::max<int64_t>(1, a.size(0))), [&](int64_t begin, int64_t end) {
      merge_rows(w.const_data_ptr<float>() + begin * in, a_rows, b_rows, scaling, begin, end - begin, merged.mutable_data_ptr<float>() + begin * in);
    });
    return merged;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &a = saved[0], &b = saved[1], &g = grads[0];
    const double scaling = ctx->saved_data["scaling"].toDouble();
    return {ctx->saved_data["dweight"].toBool() ? g : Tensor(), a.requires_grad() ? at::mm(b.t(), g).mul_(scaling) : Tensor(),
            b.requires_grad() ? at::mm(g, a.t()).mul_(scaling) : Tensor(), {}};
  }
};

Tensor lora_weight(const Tensor& weight, const Tensor& a, const Tensor& b, double scaling) { return LoraWeight::apply(weight, a, b, scaling); }

// The result of both operators: y = x Wᵀ + bias + s (input Aᵀ) Bᵀ (LoRA, arXiv 2106.09685, eq. 3).
struct Adapted {
  Tensor y, h;  // h = input Aᵀ, saved for the gradient of B
};

Adapted adapted_product(const Tensor& x, const Tensor& input, const Weight& w, const std::optional<Tensor>& bias, const Tensor& a, const Tensor& b,
                        double scaling) {
  check_update(a, b, w.out(), w.in());
  Tensor y = product(x, w, bias);
  const Tensor h = rank_product(input, a);
  add_update(y, h, b.t(), scaling);
  return {y, h};
}

// Returns dh and dB, scaled.
std::pair<Tensor, Tensor> scaled_products(AutogradContext* ctx, const Tensor& g, const Tensor& h, const Tensor& b) {
  auto [dh, db] = backward_products(g, h, b);
  const double scaling = ctx->saved_data["scaling"].toDouble();
  return {dh.mul_(scaling), db.mul_(scaling)};
}

// x_dropped is x after dropout, which applies to the input of the adapter only, as in PEFT; without dropout it is absent.
struct LoraLinear : torch::autograd::Function<LoraLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& x_dropped, const Tensor& weight, int64_t format,
                        const std::optional<Tensor>& bias, const Tensor& a, const Tensor& b, double scaling) {
    check_number(x, "x");
    const Weight w = weight_of(weight, format);
    const Tensor& input = x_dropped ? *x_dropped : x;
    const auto [y, h] = adapted_product(x, input, w, bias, a, b, scaling);
    // The inputs are saved for the gradients of A and of a trained weight only.
    ctx->save_for_backward({a.requires_grad() ? input : Tensor(), weight.requires_grad() ? x : Tensor(), h, a, b});
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["dropped"] = x_dropped.has_value();
    ctx->saved_data["dx"] = x.requires_grad();
    ctx->saved_data["dinput"] = input.requires_grad();
    save_weight(ctx, w, bias);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &x = saved[1], &h = saved[2], &a = saved[3], &b = saved[4];
    const Tensor g = grads[0].contiguous();
    const auto [dh, db] = scaled_products(ctx, g, h, b);
    Tensor dx, dx_dropped;
    if (ctx->saved_data["dx"].toBool()) dx = product_backward(g, saved_weight(ctx));
    if (ctx->saved_data["dinput"].toBool()) {
      if (ctx->saved_data["dropped"].toBool()) dx_dropped = at::mm(dh, a.to(dh.scalar_type())).to(g.scalar_type());
      else add_update(dx, dh, a, 1);
    }
    const Tensor da = a.requires_grad() ? factor_gradient(dh, input) : Tensor();
    return {dx, dx_dropped, weight_gradient(g, x), {}, bias_gradient(ctx, g), da, b.requires_grad() ? db : Tensor(), {}};
  }
};

Tensor lora_linear(const Tensor& x, const std::optional<Tensor>& x_dropped, const Tensor& weight, int64_t format, const std::optional<Tensor>& bias,
                   const Tensor& a, const Tensor& b, double scaling) {
  return LoraLinear::apply(x, x_dropped, weight, format, bias, a, b, scaling);
}

// The same after a gated linear unit, x = act(gate) up. x is the widest activation of a block: it is not saved but computed again in
// backward, which costs one pass over gate and up.
struct LoraGatedLinear : torch::autograd::Function<LoraGatedLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up, std::string_view act, const Tensor& weight, int64_t format,
                        const std::optional<Tensor>& bias, const Tensor& a, const Tensor& b, double scaling) {
    const Activation activated = activation(act);
    const Weight w = weight_of(weight, format);
    const Tensor x = glu_forward(gate, up, activated);
    const auto [y, h] = adapted_product(x, x, w, bias, a, b, scaling);
    ctx->save_for_backward({gate, up, h, a, b});
    ctx->saved_data["act"] = static_cast<int64_t>(activated);
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["dx"] = gate.requires_grad() || up.requires_grad();
    save_weight(ctx, w, bias);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], &h = saved[2], &a = saved[3], &b = saved[4];
    const auto act = static_cast<Activation>(ctx->saved_data["act"].toInt());
    const Tensor g = grads[0].contiguous();
    const auto [dh, db] = scaled_products(ctx, g, h, b);
    const Weight w = saved_weight(ctx);
    const bool weight_is_trained = w.tensor.requires_grad();
    const Tensor x = a.requires_grad() || weight_is_trained ? glu_forward(gate, up, act) : Tensor();
    const Tensor da = a.requires_grad() ? factor_gradient(dh, x) : Tensor();
    Tensor dgate, dup;
    if (ctx->saved_data["dx"].toBool()) {
      Tensor dx = product_backward(g, w);
      add_update(dx, dh, a, 1);
      std::tie(dgate, dup) = glu_backward(gate, up, dx, act);
    }
    return {dgate, dup, {}, weight_is_trained ? weight_gradient(g, x) : Tensor(), {}, bias_gradient(ctx, g), da, b.requires_grad() ? db : Tensor(), {}};
  }
};

Tensor lora_gated_linear(const Tensor& gate, const Tensor& up, std::string_view act, const Tensor& weight, int64_t format,
                         const std::optional<Tensor>& bias, const Tensor& a, const Tensor& b, double scaling) {
  return LoraGatedLinear::apply(glu_input(gate, up), glu_input(up, gate), act, weight, format, bias, a, b, scaling);
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def(
      "lora_gated_linear(Tensor gate, Tensor up, str act, Tensor weight, int format, Tensor? bias, Tensor a, Tensor b, float scaling) -> Tensor",
      lora_gated_linear);
  m.def("lora_weight(Tensor weight, Tensor a, Tensor b, float scaling) -> Tensor", lora_weight);
  m.def("lora_linear(Tensor x, Tensor? x_dropped, Tensor weight, int format, Tensor? bias, Tensor a, Tensor b, float scaling) -> Tensor", lora_linear);
}

}  // namespace
}  // namespace graft
