// Linear layers in quantisation-aware training: y = x round(W + s B A)ᵀ + bias. The rounded weight exists only while a product needs it, and is
// made again for the backward pass; the graph keeps the inputs. Gradients pass the rounding, except where a code was brought into its range.
#include "fake_quantize.h"
#include "glu.h"
#include "kernels/entries.h"
#include "lora.h"
#include "product.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowsAtATime = 16;        // of a weight, which stay in the cache between sum and rounding
constexpr int64_t kTokens = 128;     // of which transposed inputs stay in the cache
constexpr int64_t kDense = 20;       // above one clipped element in so many, the dense gradient is faster
constexpr int64_t kBlock = 1 << 18;  // elements of the dense gradient at a time

// What is rounded: W [out, in] and, where they are defined, A [r, in] and B [out, r]. All are contiguous.
struct Layer {
  Tensor weight, a, b;
  double scaling;
  Rounding rounding;

  bool adapted() const { return a.defined(); }
  int64_t out() const { return weight.size(0); }
  int64_t in() const { return weight.size(1); }
  const float* rows(int64_t first) const { return weight.const_data_ptr<float>() + first * in(); }
};

Layer layer_of(const Tensor& weight, const std::optional<Tensor>& a, const std::optional<Tensor>& b, double scaling, int64_t format, int64_t group,
               bool symmetric, const std::optional<Tensor>& scales) {
  check_float(weight, "weight");
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "a weight must be a contiguous matrix, got ", weight.sizes());
  TORCH_CHECK(a.has_value() == b.has_value(), "A and B must be given together");
  if (a) check_update(*a, *b, weight.size(0), weight.size(1));
  return {weight, a ? a->contiguous() : Tensor(), b ? b->contiguous() : Tensor(), scaling, rounding_of(weight, format, group, symmetric, scales)};
}

// Returns the rounded weight, and writes the bits of clipped elements where `clipped` is defined.
Tensor rounded(const Layer& layer, const Tensor& clipped) {
  Tensor values = at::empty_like(layer.weight);
  const int64_t in = layer.in();
  for_rows(layer.weight, values, [&](int64_t row, int64_t n, const float* from, float* to) {
    if (!layer.adapted()) return layer.rounding.round(row, n, in, from, to, words_of(clipped, row));
    int64_t done = 0;
    for (int64_t count; done < n; done += count) {
      count = std::min(kRowsAtATime, n - done);
      float* rows = to + done * in;
      merge_rows(from + done * in, layer.a, layer.b, layer.scaling, row + done, count, rows);
      const int64_t held = layer.rounding.round(row + done, count, in, rows, rows, words_of(clipped, row + done));
      if (held < count) return done + held;
    }
    return done;
  });
  return values;
}

struct Gradients {
  Tensor weight, a, b, scales;
};

// The clipped elements of each row: their columns, and where the row's begin in the list.
struct Entries {
  std::vector<int64_t> starts;
  std::vector<int32_t> columns;
};

int64_t count_of(const Tensor& clipped) {
  const uint32_t* words = words_of(clipped, 0);
  int64_t count = 0;
  for (int64_t i = 0; i < clipped.numel(); i++) count += __builtin_popcount(words[i]);
  return count;
}

Entries entries_of(const Tensor& clipped, int64_t count) {
  Entries entries;
  entries.columns.reserve(count);
  for (int64_t row = 0; row < clipped.size(0); row++) {
    entries.starts.push_back(entries.columns.size());
    const uint32_t* words = words_of(clipped, row);
    for (int64_t i = 0; i < clipped.size(1); i++)
      for (uint32_t rest = words[i]; rest; rest &= rest - 1) entries.columns.push_back(static_cast<int32_t>(32 * i + __builtin_ctz(rest)));
  }
  entries.starts.push_back(entries.columns.size());
  return entries;
}

// Returns gᵀ x at the entries.
std::vector<float> gradient_at(const Entries& entries, const Tensor& g, const Tensor& x) {
  const auto& kernels = pick(avx512::entries, avx2::entries);
  const int64_t n = x.size(0), in = x.size(1), out = g.size(1);
  std::vector<float> sums(entries.columns.size());
  const Tensor x_t = at::empty({in, kTokens}, x.options()), g_t = at::empty({out, kTokens}, x.options());
  for (int64_t first = 0; first < n; first += kTokens) {
    const int64_t tokens = std::min(kTokens, n - first), stride = (tokens + 15) / 16 * 16;
    at::parallel_for(0, in, grain(tokens), [&](int64_t begin, int64_t end) {
      kernels.transpose(x.const_data_ptr<float>() + first * in + begin, in, tokens, end - begin, x_t.mutable_data_ptr<float>() + begin * stride, stride);
    });
    at::parallel_for(0, out, grain(tokens), [&](int64_t begin, int64_t end) {
      float* g_rows = g_t.mutable_data_ptr<float>();
      kernels.transpose(g.const_data_ptr<float>() + first * out + begin, out, tokens, end - begin, g_rows + begin * stride, stride);
      for (int64_t row = begin; row < end; row++) {
        const int64_t start = entries.starts[row];
        kernels.dots(g_rows + row * stride, x_t.const_data_ptr<float>(), stride, entries.columns.data() + start, entries.starts[row + 1] - start,
                     sums.data() + start);
      }
    });
  }
  return sums;
}

// Gradients of A and B alone: the products of LoRA without what the few clipped elements add to them.
void low_rank_gradients(const Layer& layer, const Tensor& g, const Tensor& x, const Tensor& clipped, int64_t count, Gradients& to) {
  auto [dh, db] = backward_products(g, at::mm(x, layer.a.t()), layer.b);
  Tensor da = at::mm(dh.t(), x);
  if (count > 0) {
    const Entries entries = entries_of(clipped, count);
    const std::vector<float> sums = gradient_at(entries, g, x);
    const int64_t out = layer.out(), r = layer.b.size(1), threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), out / 16));
    const Tensor a_t = layer.a.t().contiguous();
    Tensor da_t = at::zeros({threads, layer.in(), r}, layer.a.options());
    at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; t++) {
        for (int64_t row = out * t / threads; row < out * (t + 1) / threads; row++) {
          const int64_t start = entries.starts[row];
          pick(avx512::entries, avx2::entries)
              .take_off(sums.data() + start, entries.columns.data() + start, entries.starts[row + 1] - start, a_t.const_data_ptr<float>(),
                        layer.b.const_data_ptr<float>() + row * r, r, da_t.mutable_data_ptr<float>() + t * layer.in() * r,
                        db.mutable_data_ptr<float>() + row * r);
        }
      }
    });
    da.add_(da_t.sum(0).t());
  }
  to.a = da.mul_(layer.scaling);
  to.b = db.mul_(layer.scaling);
}

// All gradients, from that of the rounded weight, gᵀ x, some rows at a time. Where scales are trained, `clipped` is undefined.
void dense_gradients(const Layer& layer, const Tensor& g, const Tensor& x, const Tensor& clipped, bool weight, bool update, bool scales, Gradients& to) {
  const int64_t out = layer.out(), in = layer.in(), step = std::max<int64_t>(kRowsAtATime, kBlock / std::max<int64_t>(1, in));
  if (weight) to.weight = at::empty_like(layer.weight);
  if (scales) to.scales = at::empty_like(layer.rounding.scales);
  if (update) to.a = at::zeros_like(layer.a), to.b = at::empty_like(layer.b);
  for (int64_t first = 0; first < out; first += step) {
    const int64_t count = std::min(step, out - first);
    Tensor dw = weight ? to.weight.narrow(0, first, count) : at::empty({count, in}, g.options());
    at::mm_out(dw, g.narrow(1, first, count).t(), x);
    if (scales) {
      float* gradient = dw.mutable_data_ptr<float>();
      at::parallel_for(0, count, grain(in), [&](int64_t begin, int64_t end) {
        std::vector<float> sums(layer.adapted() ? in : 0);
        for (int64_t i = begin; i < end; i++) {
          const int64_t row = first + i;
          if (layer.adapted()) merge_rows(layer.rows(row), layer.a, layer.b, layer.scaling, row, 1, sums.data());
          integer_kernels().backward_given(layer.rounding.scheme, layer.adapted() ? sums.data() : layer.rows(row), layer.rounding.given(row),
                                           gradient + i * in, 1, in, gradient + i * in,
                                           to.scales.mutable_data_ptr<float>() + row * to.scales.size(1));
        }
      });
    } else if (clipped.defined()) {
      mask_rows(clipped, first, dw);
    }
    if (!update) continue;
    Tensor db = to.b.narrow(0, first, count);
    at::mm_out(db, dw, layer.a.t());
    to.a.addmm_(layer.b.narrow(0, first, count).t(), dw);
  }
  if (update) to.a.mul_(layer.scaling), to.b.mul_(layer.scaling);
}

// What the backward pass needs besides the inputs: everything by reference.
void save_layer(AutogradContext* ctx, const Layer& layer, const std::optional<Tensor>& bias, variable_list inputs, const std::optional<Tensor>& a,
                const std::optional<Tensor>& b, const std::optional<Tensor>& scales) {
  for (const auto& tensor : {a, b, scales}) inputs.push_back(tensor.value_or(Tensor()));
  ctx->save_for_backward(std::move(inputs));
  save_weight(ctx, {layer.weight, -1}, bias);
  ctx->saved_data["scaling"] = layer.scaling;
  ctx->saved_data["number"] = static_cast<int64_t>(layer.rounding.format);
  ctx->saved_data["group"] = layer.rounding.scheme.group;
  ctx->saved_data["symmetric"] = layer.rounding.scheme.symmetric;
}

bool is_trained(const std::optional<Tensor>& tensor) { return tensor && tensor->defined() && tensor->requires_grad(); }

// Products with a trained weight are never reduced (product.h).
Tensor forward_product(const Tensor& x, const Layer& layer, const std::optional<Tensor>& bias) {
  check_float(x, "x");
  TORCH_CHECK(x.dim() == 2 && x.size(1) == layer.in(), "x must have the shape [n, ", layer.in(), "], got ", x.sizes());
  const Tensor values = rounded(layer, Tensor());
  if (!layer.weight.requires_grad()) return product(x, {values, -1}, bias);
  return bias ? at::addmm(*bias, x, values.t()) : at::mm(x, values.t());
}

// The backward pass of both operators. `inputs` says how many saved tensors come before A, B and the scales.
struct Backward {
  const Tensor g;
  const variable_list saved;
  const Tensor a, b, scales;
  const Layer layer;
  Tensor values, clipped;  // of the rounded weight, made again

  Backward(AutogradContext* ctx, const Tensor& dy, size_t inputs)
      : g(dy.contiguous()),
        saved(ctx->get_saved_variables()),
        a(saved[inputs]),
        b(saved[inputs + 1]),
        scales(saved[inputs + 2]),
        layer(layer_of(ctx->saved_data["weight"].toTensor(), given(a), given(b), ctx->saved_data["scaling"].toDouble(),
                       ctx->saved_data["number"].toInt(), ctx->saved_data["group"].toInt(), ctx->saved_data["symmetric"].toBool(), given(scales))) {
    if (trains_weight() && layer.rounding.clips() && !is_trained(scales)) clipped = clipped_bits(layer.weight);
    if (ctx->saved_data["dx"].toBool() || clipped.defined()) values = rounded(layer, clipped);
  }

  static std::optional<Tensor> given(const Tensor& tensor) { return tensor.defined() ? std::optional(tensor) : std::nullopt; }

  bool trains_weight() const { return layer.weight.requires_grad() || trains_update(); }
  bool trains_update() const { return is_trained(a) || is_trained(b); }
  bool needs_x() const { return trains_weight() || is_trained(scales); }

  // The gradient of x; frees the rounded weight.
  Tensor dx() {
    const Tensor dx = layer.weight.requires_grad() ? at::mm(g, values) : product_backward(g, {values, -1});
    values.reset();
    return dx;
  }

  Gradients gradients(const Tensor& x) const {
    Gradients gradients;
    if (!needs_x()) return gradients;
    const int64_t count = clipped.defined() ? count_of(clipped) : 0;
    const bool dense = layer.weight.requires_grad() || is_trained(scales) || count * kDense > layer.weight.numel();
    if (dense) dense_gradients(layer, g, x, clipped, layer.weight.requires_grad(), trains_update(), is_trained(scales), gradients);
    else low_rank_gradients(layer, g, x, clipped, count, gradients);
    if (!is_trained(a)) gradients.a.reset();
    if (!is_trained(b)) gradients.b.reset();
    return gradients;
  }
};

struct RoundedLinear : torch::autograd::Function<RoundedLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& a, const std::optional<Tensor>& b,
                        double scaling, const std::optional<Tensor>& bias, int64_t format, int64_t group, bool symmetric,
                        const std::optional<Tensor>& scales) {
    const Layer layer = layer_of(weight, a, b, scaling, format, group, symmetric, scales);
    const bool needs_x = is_trained(weight) || is_trained(a) || is_trained(b) || is_trained(scales);
    save_layer(ctx, layer, bias, {needs_x ? x : Tensor()}, a, b, scales);
    ctx->saved_data["dx"] = x.requires_grad();
    return forward_product(x, layer, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Backward pass(ctx, grads[0], 1);
    const Tensor dx = ctx->saved_data["dx"].toBool() ? pass.dx() : Tensor();
    auto [dweight, da, db, dscales] = pass.gradients(pass.needs_x() ? pass.saved[0].contiguous() : Tensor());
    return {dx, dweight, da, db, {}, bias_gradient(ctx, pass.g), {}, {}, {}, dscales};
  }
};

// The same after a gated linear unit, x = act(gate) up, which is computed again in backward (lora.cc).
struct RoundedGatedLinear : torch::autograd::Function<RoundedGatedLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up, std::string_view act, const Tensor& weight,
                        const std::optional<Tensor>& a, const std::optional<Tensor>& b, double scaling, const std::optional<Tensor>& bias,
                        int64_t format, int64_t group, bool symmetric, const std::optional<Tensor>& scales) {
    const Activation activated = activation(act);
    const Layer layer = layer_of(weight, a, b, scaling, format, group, symmetric, scales);
    save_layer(ctx, layer, bias, {gate, up}, a, b, scales);
    ctx->saved_data["act"] = static_cast<int64_t>(activated);
    ctx->saved_data["dx"] = gate.requires_grad() || up.requires_grad();
    return forward_product(glu_forward(gate, up, activated), layer, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Backward pass(ctx, grads[0], 2);
    const Tensor &gate = pass.saved[0], &up = pass.saved[1];
    const auto act = static_cast<Activation>(ctx->saved_data["act"].toInt());
    Tensor dgate, dup;
    if (ctx->saved_data["dx"].toBool()) std::tie(dgate, dup) = glu_backward(gate, up, pass.dx(), act);
    auto [dweight, da, db, dscales] = pass.gradients(pass.needs_x() ? glu_forward(gate, up, act) : Tensor());
    return {dgate, dup, {}, dweight, da, db, {}, bias_gradient(ctx, pass.g), {}, {}, {}, dscales};
  }
};

Tensor rounded_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& a, const std::optional<Tensor>& b, double scaling,
                      const std::optional<Tensor>& bias, int64_t format, int64_t group, bool symmetric, const std::optional<Tensor>& scales) {
  return RoundedLinear::apply(x, weight, a, b, scaling, bias, format, group, symmetric, scales);
}

Tensor rounded_gated_linear(const Tensor& gate, const Tensor& up, std::string_view act, const Tensor& weight, const std::optional<Tensor>& a,
                            const std::optional<Tensor>& b, double scaling, const std::optional<Tensor>& bias, int64_t format, int64_t group,
                            bool symmetric, const std::optional<Tensor>& scales) {
  return RoundedGatedLinear::apply(gate, up, act, weight, a, b, scaling, bias, format, group, symmetric, scales);
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def(
      "rounded_linear(Tensor x, Tensor weight, Tensor? a, Tensor? b, float scaling, Tensor? bias, int format, int group, bool symmetric, "
      "Tensor? scales) -> Tensor",
      rounded_linear);
  m.def(
      "rounded_gated_linear(Tensor gate, Tensor up, str act, Tensor weight, Tensor? a, Tensor? b, float scaling, Tensor? bias, int format, int group, "
      "bool symmetric, Tensor? scales) -> Tensor",
      rounded_gated_linear);
}

}  // namespace
}  // namespace graft
