// Updates of consecutive rows ("runs") of a layer's output, each by the adapter that the run uses: many adapters in one call, for serving.
// No gradients: an input that requires one is refused.
#include "lora.h"
#include "lowrank.h"

namespace graft {
namespace {

using at::Tensor;
using at::TensorList;

constexpr int64_t kFewTokens = 16;  // longer runs go through the general product
constexpr int64_t kRankTile = 4, kColumnTile = 256;

Factor factor_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Factor::F32;
    case at::kHalf: return Factor::F16;
    case at::kBFloat16: return Factor::BF16;
    default: TORCH_CHECK(false, name, " must be float32, float16 or bfloat16, got ", tensor.scalar_type());
  }
}

void check_rows(const Tensor& tensor, const char* name) {
  check_float(tensor, name);
  check_frozen(tensor, name);
  TORCH_CHECK(tensor.dim() == 2 && (tensor.size(1) <= 1 || tensor.stride(1) == 1), name, " must be a matrix whose rows are contiguous, got ", tensor.sizes());
}

void check_runs(const Tensor& y, at::IntArrayRef starts, at::IntArrayRef ends, size_t count) {
  TORCH_CHECK(starts.size() == count && ends.size() == count, "every run has a start, an end and its tensors, got ", starts.size(), ", ", ends.size(), " and ",
              count);
  for (size_t i = 0; i < count; i++) {
    TORCH_CHECK(0 <= starts[i] && starts[i] <= ends[i] && ends[i] <= y.size(0), "a run must lie within the ", y.size(0), " rows of y, got ", starts[i], " to ",
                ends[i]);
    if (i == 0 || starts[i] >= ends[i - 1]) continue;
    TORCH_CHECK(starts[i] == starts[i - 1] && ends[i] == ends[i - 1], "runs must follow one another, or be about the same rows: ", starts[i], " to ", ends[i],
                " comes after ", starts[i - 1], " to ", ends[i - 1]);
  }
}

// The factors of each run, A [r, in] and B [r, out], the transpose of LoRA's; ranks differ between runs. Bottlenecks have biases [r] and [out] too.
struct Factors {
  TensorList a, b, a_bias, b_bias;
  at::ArrayRef<double> scalings;

  bool biased() const { return !a_bias.empty(); }
};

void check_factors(const Factors& f, int64_t in, int64_t out) {
  const size_t count = f.a.size();
  TORCH_CHECK(f.b.size() == count && f.scalings.size() == count && f.a_bias.size() == f.b_bias.size() && (f.a_bias.empty() || f.a_bias.size() == count),
              "every run has a, b, a scaling and perhaps biases, got ", count, ", ", f.b.size(), ", ", f.scalings.size(), ", ", f.a_bias.size(), " and ",
              f.b_bias.size());
  for (size_t i = 0; i < count; i++) {
    const Tensor &a = f.a[i], &b = f.b[i];
    check_frozen(a, "a");
    check_frozen(b, "b");
    TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(0) == b.size(0) && a.size(1) == in && b.size(1) == out, "a must have the shape [r, ", in,
                "] and b [r, ", out, "], got ", a.sizes(), " and ", b.sizes());
    TORCH_CHECK(a.is_contiguous() && b.is_contiguous(), "a and b must be contiguous");
    if (!f.biased()) continue;
    for (const auto& [bias, size] : {std::pair{f.a_bias[i], a.size(0)}, std::pair{f.b_bias[i], out}}) {
      check_float(bias, "bias");
      check_frozen(bias, "bias");
      TORCH_CHECK(bias.numel() == size && bias.is_contiguous(), "a bias must have ", size, " numbers, got ", bias.sizes());
    }
  }
}

void add_to_rows(float* rows, int64_t stride, int64_t n, const float* added, int64_t width, float scaling) {
  for (int64_t row = 0; row < n; row++)
    for (int64_t i = 0; i < width; i++) rows[row * stride + i] += scaling * added[i];
}

// One run of few tokens, and where its h [n, r] begins among those of all runs.
struct ShortRun {
  const float* x;
  float* y;
  const void *a, *b;
  const float *a_bias, *b_bias;
  Factor a_type, b_type;
  int64_t n, r, h;
  float scaling;
  bool same_rows;  // as the run before: one thread adds both
};

// y[run] += scaling * (f(x[run] Aᵀ + a_bias) B + b_bias) for each run; without biases f is the identity.
template <typename Activate>
void add_runs(Tensor y, const Tensor& x, at::IntArrayRef starts, at::IntArrayRef ends, const Factors& f, Activate activate) {
  check_rows(y, "y");
  check_rows(x, "x");
  TORCH_CHECK(x.size(0) == y.size(0), "x and y must have the same rows, got ", x.size(0), " and ", y.size(0));
  check_runs(y, starts, ends, f.a.size());
  const int64_t in = x.size(1), out = y.size(1), x_stride = x.stride(0), y_stride = y.stride(0);
  check_factors(f, in, out);
  y.unsafeGetTensorImpl()->bump_version();
  std::vector<ShortRun> runs;
  int64_t h_size = 0, largest = 0, last_end = 0;
  for (size_t i = 0; i < f.a.size(); i++) {
    const Factor a_type = factor_of(f.a[i], "a"), b_type = factor_of(f.b[i], "b");
    const int64_t n = ends[i] - starts[i], r = f.a[i].size(0);
    if (n == 0 || (r == 0 && !f.biased())) continue;
    if (n > kFewTokens) {
      const Tensor to = y.narrow(0, starts[i], n), from = x.narrow(0, starts[i], n), a_t = f.a[i].to(at::kFloat).t();
      Tensor h = f.biased() ? at::addmm(f.a_bias[i], from, a_t) : at::mm(from, a_t);
      activate(h);
      to.addmm_(h, f.b[i].to(at::kFloat), 1, f.scalings[i]);
      if (f.biased()) to.add_(f.b_bias[i], f.scalings[i]);
      continue;
    }
    runs.push_back({x.const_data_ptr<float>() + starts[i] * x_stride, y.mutable_data_ptr<float>() + starts[i] * y_stride, f.a[i].const_data_ptr(),
                    f.b[i].const_data_ptr(), f.biased() ? f.a_bias[i].const_data_ptr<float>() : nullptr,
                    f.biased() ? f.b_bias[i].const_data_ptr<float>() : nullptr, a_type, b_type, n, r, h_size, static_cast<float>(f.scalings[i]),
                    !runs.empty() && starts[i] < last_end});
    last_end = ends[i];
    h_size += n * r;
    largest = std::max(largest, r);
  }
  const int64_t count = static_cast<int64_t>(runs.size());
  if (count == 0) return;
  // Tiles of one run follow one another, so that a thread reads a factor from its beginning to its end.
  const int64_t rank_tiles = (largest + kRankTile - 1) / kRankTile, column_tiles = (out + kColumnTile - 1) / kColumnTile;
  Tensor hidden = at::empty({h_size}, x.options());
  float* h = hidden.mutable_data_ptr<float>();
  at::parallel_for(0, count * rank_tiles, grain(kRankTile * in), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const ShortRun& run = runs[tile / rank_tiles];
      const int64_t first = tile % rank_tiles * kRankTile, last = std::min(first + kRankTile, run.r);
      if (first >= run.r) continue;
      lowrank_kernels().down(run.a_type, run.x, x_stride, run.n, run.a, in, first, last, run.r, h + run.h);
      if (run.a_bias) add_to_rows(h + run.h + first, run.r, run.n, run.a_bias + first, last - first, 1);
    }
  });
  activate(hidden);
  at::parallel_for(0, count * column_tiles, grain(kColumnTile * std::max<int64_t>(1, largest)), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t first = tile % column_tiles * kColumnTile, last = std::min(first + kColumnTile, out);
      auto run = runs.begin() + tile / column_tiles;
      if (run->same_rows) continue;
      do {
        lowrank_kernels().up(run->b_type, h + run->h, run->n, run->r, run->b, out, first, last, run->scaling, run->y, y_stride);
        if (run->b_bias) add_to_rows(run->y + first, y_stride, run->n, run->b_bias + first, last - first, run->scaling);
      } while (++run != runs.end() && run->same_rows);
    }
  });
}

// The same on a GPU, without biases.
void cuda_add_runs(const Tensor& y, const Tensor& x, at::IntArrayRef starts, at::IntArrayRef ends, const Factors& f) {
  for (const auto& [tensor, name] : {std::pair{y, "y"}, std::pair{x, "x"}}) {
    check_number(tensor, name);
    check_frozen(tensor, name);
    TORCH_CHECK(tensor.dim() == 2 && (tensor.size(1) <= 1 || tensor.stride(1) == 1), name, " must be a matrix whose rows are contiguous, got ", tensor.sizes());
  }
  TORCH_CHECK(x.size(0) == y.size(0), "x and y must have the same rows, got ", x.size(0), " and ", y.size(0));
  check_runs(y, starts, ends, f.a.size());
  check_factors(f, x.size(1), y.size(1));
  y.unsafeGetTensorImpl()->bump_version();
  std::vector<graft_cuda::Run> down;
  std::vector<std::vector<graft_cuda::Run>> up;  // launches: those about the same rows one after the other
  int64_t h_size = 0, last_end = 0;
  for (size_t i = 0; i < f.a.size(); i++) {
    const int64_t n = ends[i] - starts[i], r = f.a[i].size(0);
    if (n == 0 || r == 0) continue;
    down.push_back(cuda_run(f.a[i], starts[i], n, h_size, 1));
    if (up.empty() || starts[i] < last_end) up.emplace_back();
    up.back().push_back(cuda_run(f.b[i], starts[i], n, h_size, f.scalings[i]));
    last_end = ends[i];
    h_size += n * r;
  }
  const Tensor h = at::empty({h_size}, x.options().dtype(at::kFloat));
  cuda_down(x, down, h);
  for (const auto& runs : up) cuda_up(y, runs, h);
}

void add_low_rank_runs(Tensor y, const Tensor& x, at::IntArrayRef starts, at::IntArrayRef ends, TensorList a, TensorList b, at::ArrayRef<double> scalings) {
  if (runs_cuda_kernels(y)) return cuda_add_runs(y, x, starts, ends, {a, b, {}, {}, scalings});
  add_runs(y, x, starts, ends, {a, b, {}, {}, scalings}, [](Tensor&) {});
}

void add_bottleneck_runs(Tensor y, const Tensor& x, std::string_view activation, at::IntArrayRef starts, at::IntArrayRef ends, TensorList a, TensorList a_bias,
                         TensorList b, TensorList b_bias, at::ArrayRef<double> scalings) {
  void (*activate)(Tensor&) = activation == "relu"        ? [](Tensor& h) { at::relu_(h); }
                              : activation == "silu"      ? [](Tensor& h) { at::silu_(h); }
                              : activation == "gelu"      ? [](Tensor& h) { at::gelu_(h); }
                              : activation == "gelu_tanh" ? [](Tensor& h) { at::gelu_(h, "tanh"); }
                              : activation == "tanh"      ? [](Tensor& h) { at::tanh_(h); }
                              : activation == "sigmoid"   ? [](Tensor& h) { at::sigmoid_(h); }
                                                          : static_cast<void (*)(Tensor&)>(nullptr);
  TORCH_CHECK(activate, "activation must be relu, silu, gelu, gelu_tanh, tanh or sigmoid, got ", activation);
  TORCH_CHECK(a_bias.size() == a.size(), "every run has biases, got ", a_bias.size(), " for ", a.size(), " runs");
  add_runs(y, x, starts, ends, {a, b, a_bias, b_bias, scalings}, activate);
}

// y[run] *= gain [out] for each run.
void scale_runs(Tensor y, at::IntArrayRef starts, at::IntArrayRef ends, TensorList gains) {
  check_rows(y, "y");
  check_runs(y, starts, ends, gains.size());
  y.unsafeGetTensorImpl()->bump_version();
  const int64_t out = y.size(1);
  for (size_t i = 0; i < gains.size(); i++) {
    check_float(gains[i], "gain");
    check_frozen(gains[i], "gain");
    TORCH_CHECK(gains[i].numel() == out && gains[i].is_contiguous(), "a gain must have ", out, " numbers, got ", gains[i].sizes());
    if (ends[i] - starts[i] > kFewTokens) {
      y.narrow(0, starts[i], ends[i] - starts[i]).mul_(gains[i]);
      continue;
    }
    const float* gain = gains[i].const_data_ptr<float>();
    float* rows = y.mutable_data_ptr<float>();
    for (int64_t row = starts[i]; row < ends[i]; row++)
      for (int64_t o = 0; o < out; o++) rows[row * y.stride(0) + o] *= gain[o];
  }
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("add_low_rank_runs_(Tensor(a!) y, Tensor x, int[] starts, int[] ends, Tensor[] a, Tensor[] b, float[] scalings) -> ()", add_low_rank_runs);
  m.def(
      "add_bottleneck_runs_(Tensor(a!) y, Tensor x, str activation, int[] starts, int[] ends, Tensor[] a, Tensor[] a_bias, Tensor[] b, Tensor[] b_bias, "
      "float[] scalings) -> ()",
      add_bottleneck_runs);
  m.def("scale_runs_(Tensor(a!) y, int[] starts, int[] ends, Tensor[] gains) -> ()", scale_runs);
}

}  // namespace
}  // namespace graft
