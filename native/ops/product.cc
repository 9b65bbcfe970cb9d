#include "product.h"

#include <ATen/autocast_mode.h>
#include <ATen/native/CPUBlas.h>

#include "kernels/bf16.h"

namespace graft {

using at::Tensor;

namespace {

thread_local Reduced reduced;  // two engine threads of a process may differ
thread_local bool row_wise = false;
constexpr int64_t kColumns = 64;   // of a panel: the second factor of one small product
constexpr int64_t kRows = 64;      // of the first factor
constexpr int64_t kMinRows = 16;   // of activations, and
constexpr int64_t kMinSide = 128;  // of a weight, for which panels are faster

// Rows of activations for which our kernels are taken where products are row-wise: for more, a general product with the unpacked weight costs
// less, unless the weight is larger than the caches.
constexpr int64_t kFewRows = 32;
constexpr int64_t kLargeWeight = 1 << 23, kFewRowsOfLarge = 128;
constexpr int64_t kMinArranged = 3;  // rows from which a dense weight is multiplied panel by panel; one in blocks: more than a matvec takes

const Bf16Kernels& rounding() { return pick(avx512::bf16, avx2::bf16); }

// Returns memory in which this thread packs panels; it is reused for the next product.
template <typename T>
T* scratch(int64_t count) {
  static thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(count);
  return memory.data();
}

// Returns [n, c] float32, whose rows may be strided, as bfloat16.
Tensor rounded(const Tensor& x) {
  const int64_t n = x.size(0), c = x.size(1);
  Tensor y = at::empty({n, c}, at::kBFloat16);
  const float* from = x.const_data_ptr<float>();
  auto* to = static_cast<uint16_t*>(y.mutable_data_ptr());
  TORCH_CHECK(x.stride(1) == 1, "the rows of x must be contiguous, got the strides ", x.strides());
  at::parallel_for(0, n, grain(c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) rounding().round(from + i * x.stride(0), c, to + i * c);
  });
  return y;
}

// y [n, m] = a [n, k] b, where `pack(first, count, panel)` writes columns of b; with `add` the product is added to y.
template <typename Pack>
void panels(const Tensor& a, int64_t k, int64_t m, bool add, Tensor& y, Pack pack) {
  const int64_t n = a.size(0);
  const auto* left = static_cast<const at::BFloat16*>(a.const_data_ptr());
  float* to = y.mutable_data_ptr<float>();
  const int64_t stride = y.stride(0);
  at::parallel_for(0, (m + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    uint32_t* panel = scratch<uint32_t>(k / 2 * kColumns);
    for (int64_t p = begin; p < end; p++) {
      const int64_t first = p * kColumns, count = std::min(kColumns, m - first);
      pack(first, count, panel);
      for (int64_t row = 0; row < n; row += kRows) {
        at::native::cpublas::brgemm(std::min(kRows, n - row), count, k, k, count, stride, add, left + row * k,
                                    reinterpret_cast<const at::BFloat16*>(panel), to + row * stride + first);
      }
    }
    at::native::cpublas::brgemm_release();
  });
}

// y = x rowsᵀ
void reduced_forward(const Tensor& x, const Weight& w, int64_t first, int64_t count, Tensor& y) {
  const int64_t k = w.in();
  const Tensor left = rounded(x);
  // A weight in blocks is unpacked before, a dense one is rounded panel by panel.
  const Tensor unpacked = w.dense() ? Tensor() : w.rows(first, count, at::kBFloat16);
  panels(left, k, count, false, y, [&](int64_t begin, int64_t columns, uint32_t* panel) {
    const uint16_t* rows;
    if (w.dense()) {
      uint16_t* rounded_rows = scratch<uint16_t>(kColumns * k);
      rounding().round(w.tensor.const_data_ptr<float>() + (first + begin) * k, columns * k, rounded_rows);
      rows = rounded_rows;
    } else {
      rows = static_cast<const uint16_t*>(unpacked.const_data_ptr()) + begin * k;
    }
    rounding().panel_of_rows(rows, columns, k, panel);
  });
}

// dx (+)= g rows
void reduced_backward(const Tensor& g, const Weight& w, int64_t first, int64_t count, bool add, Tensor& dx) {
  const int64_t width = w.in();
  const Tensor left = rounded(g);
  const Tensor unpacked = w.dense() ? Tensor() : w.rows(first, count, at::kBFloat16);
  panels(left, count, width, add, dx, [&](int64_t begin, int64_t columns, uint32_t* panel) {
    if (!w.dense()) {
      rounding().panel_of_columns(static_cast<const uint16_t*>(unpacked.const_data_ptr()) + begin, width, columns, count, panel);
      return;
    }
    uint16_t* rounded_rows = scratch<uint16_t>(2 * kColumns);
    const float* from = w.tensor.const_data_ptr<float>() + first * width + begin;
    for (int64_t row = 0; row < count; row += 2) {
      rounding().round(from + row * width, columns, rounded_rows);
      rounding().round(from + (row + 1) * width, columns, rounded_rows + columns);
      rounding().panel_of_columns(rounded_rows, columns, columns, 2, panel + row / 2 * columns);
    }
  });
}

// Whether a product of n rows of activations is rounded, with k the side of the weight that is summed over and m the other: where the weight
// is frozen, and panels are faster.
bool is_reduced(const Weight& w, int64_t n, int64_t k, int64_t m) {
  return !w.tensor.requires_grad() && n >= kMinRows && k >= kMinSide && m >= kMinSide && k % 2 == 0;
}

bool has_few(const Weight& w, int64_t n) {
  if (w.dense()) return n <= (row_wise ? kFewRows : 1);
  if (!row_wise) return n <= kMatvecMaxRows;
  return n <= (w.out() * w.in() < kLargeWeight ? kFewRows : kFewRowsOfLarge);
}

// A few rows of activations, arranged where their product with a weight in `format` needs it.
struct FewRows {
  const Tensor& x;
  BlockFormat format;
  Tensor arranged;
};

BlockFormat format_of(const Weight& w) { return w.dense() ? BlockFormat::F32 : w.block_format(); }

FewRows few(const Tensor& x, const Weight& w) {
  const int64_t n = x.size(0);
  FewRows rows = {x, format_of(w), {}};
  if (n < (w.dense() ? kMinArranged : kMatvecMaxRows + 1)) return rows;
  rows.arranged = at::empty({block_kernels().arranged_size(rows.format, n, w.in())}, x.options());
  block_kernels().arrange(rows.format, x.const_data_ptr<float>(), n, x.stride(0), w.in(), rows.arranged.mutable_data_ptr<float>());
  return rows;
}

// y[:, begin .. end) = x rowsᵀ
void few_rows(const FewRows& rows, const Weight& w, int64_t begin, int64_t end, Tensor& y) {
  const auto& kernels = block_kernels();
  const void* source = w.tensor.const_data_ptr();
  float* to = y.mutable_data_ptr<float>();
  const int64_t n = rows.x.size(0);
  if (rows.arranged.defined()) {
    float* panel = scratch<float>(kernels.panel_size(rows.format, w.in()));
    kernels.matmul(rows.format, source, begin, end, w.in(), rows.arranged.const_data_ptr<float>(), n, panel, to, w.out());
  } else {
    kernels.matvec(rows.format, source, begin, end, w.in(), rows.x.const_data_ptr<float>(), n, rows.x.stride(0), to, w.out(), false);
  }
}

void set_reduced_products(bool forward, bool backward) { reduced = {forward, backward}; }

// Whether a row's product with a frozen weight does not depend on how many rows there are, up to a few: for serving, where rows of others come
// and go. Otherwise it has the bits of a product with the unpacked weight, but for kMatvecMaxRows and fewer: so a packed model computes what
// was trained rounded.
void set_row_wise_products(bool on) { row_wise = on; }

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("set_reduced_products(bool forward, bool backward) -> ()", set_reduced_products);
  m.def("set_row_wise_products(bool on) -> ()", set_row_wise_products);
}

}  // namespace

Reduced reduced_products() { return reduced; }

at::ScalarType factor_type(const Tensor& x) {
  const at::DeviceType device = x.device().type();
  return at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : x.scalar_type();
}

Tensor product(const Tensor& x, const Weight& weight, const std::optional<Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == weight.in(), "x must have the shape [n, ", weight.in(), "], got ", x.sizes());
  if (runs_cuda_kernels(x)) {
    const at::ScalarType type = factor_type(x);
    const Tensor input = x.to(type), w = weight.all(type).to(type);
    return bias ? at::addmm(bias->to(type), input, w.t()) : at::mm(input, w.t());
  }
  if (reduced.forward && is_reduced(weight, x.size(0), weight.in(), weight.out())) {
    check_float(x, "x");
    Tensor y = at::empty({x.size(0), weight.out()}, x.options());
    reduced_forward(x.contiguous(), weight, 0, weight.out(), y);
    if (bias) y.add_(*bias);
    return y;
  }
  if (!has_few(weight, x.size(0))) {
    const Tensor unpacked = weight.all();
    return bias ? at::addmm(*bias, x, unpacked.t()) : at::mm(x, unpacked.t());
  }
  check_float(x, "x");
  const Tensor input = x.contiguous();
  const FewRows rows = few(input, weight);
  Tensor y = at::empty({x.size(0), weight.out()}, x.options());
  at::parallel_for(0, weight.out(), grain(weight.in() * x.size(0)), [&](int64_t begin, int64_t end) { few_rows(rows, weight, begin, end, y); });
  if (bias) y.add_(*bias);
  return y;
}

std::vector<Tensor> products(const Tensor& x, const std::vector<Weight>& weights, at::TensorList biases) {
  std::vector<Tensor> ys;
  const auto bias = [&](size_t i) { return biases.empty() ? std::optional<Tensor>() : std::optional<Tensor>(biases[i]); };
  const bool all_few = !reduced.forward && !runs_cuda_kernels(x) && std::all_of(weights.begin(), weights.end(), [&](const Weight& w) { return has_few(w, x.size(0)) && w.in() == x.size(1); });
  if (!all_few) {
    for (size_t i = 0; i < weights.size(); i++) ys.push_back(product(x, weights[i], bias(i)));
    return ys;
  }
  check_float(x, "x");
  const Tensor input = x.contiguous();
  std::vector<int64_t> starts = {0};
  std::vector<FewRows> rows;
  for (const Weight& w : weights) {
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const FewRows& other) { return other.format == format_of(w); });
    rows.push_back(same == rows.end() ? few(input, w) : *same);
    ys.push_back(at::empty({x.size(0), w.out()}, x.options()));
    starts.push_back(starts.back() + w.out());
  }
  // All rows of all weights are shared out at once: threads meet once, not once for each weight.
  at::parallel_for(0, starts.back(), grain(x.numel()), [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < weights.size(); i++) {
      const int64_t first = std::max(begin, starts[i]), last = std::min(end, starts[i + 1]);
      if (first < last) few_rows(rows[i], weights[i], first - starts[i], last - starts[i], ys[i]);
    }
  });
  for (size_t i = 0; i < ys.size() && !biases.empty(); i++) ys[i].add_(biases[i]);
  return ys;
}

Tensor product_backward(const Tensor& g, const Weight& weight) {
  if (runs_cuda_kernels(g)) {
    const at::ScalarType type = factor_type(g);
    return at::mm(g.to(type), weight.all(type).to(type));
  }
  if (!reduced.backward || !is_reduced(weight, g.size(0), weight.out(), weight.in())) return at::mm(g, weight.all());
  Tensor dx = at::empty({g.size(0), weight.in()}, g.options());
  reduced_backward(g.contiguous(), weight, 0, weight.out(), false, dx);
  return dx;
}

void product_rows(const Tensor& x, const Weight& weight, int64_t first, int64_t count, Tensor y) {
  if (reduced.forward && is_reduced(weight, x.size(0), weight.in(), count)) reduced_forward(x, weight, first, count, y);
  else at::mm_out(y, x, weight.rows(first, count).t());
}

void product_rows_backward(const Tensor& g, const Weight& weight, int64_t first, int64_t count, Tensor dx) {
  if (reduced.backward && is_reduced(weight, g.size(0), count, weight.in())) reduced_backward(g, weight, first, count, true, dx);
  else dx.addmm_(g, weight.rows(first, count));
}

void save_weight(torch::autograd::AutogradContext* ctx, const Weight& w, const std::optional<Tensor>& bias) {
  ctx->saved_data["weight"] = w.tensor;
  ctx->saved_data["format"] = w.format;
  ctx->saved_data["dbias"] = bias && bias->requires_grad();
}

Weight saved_weight(torch::autograd::AutogradContext* ctx) { return weight_of(ctx->saved_data["weight"].toTensor(), ctx->saved_data["format"].toInt()); }

Tensor bias_gradient(torch::autograd::AutogradContext* ctx, const Tensor& g) { return ctx->saved_data["dbias"].toBool() ? g.sum(0) : Tensor(); }

Tensor weight_gradient(const Tensor& g, const Tensor& x) { return x.defined() ? at::mm(g.t(), x) : Tensor(); }

}  // namespace graft
