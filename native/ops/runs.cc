// Updates of consecutive rows ("runs") of a layer's output, each by the adapter that the run uses: many adapters in one call, for serving.
// No gradients: an input that requires one is refused.
#include "kernels/lowrank.h"
#include "lora.h"

namespace graft {
namespace {

using at::Tensor;
using at::TensorList;

constexpr int64_t kFewTokens = 16;  // longer runs go through the general product
constexpr int64_t kRankTile = 4, kColumnTile = 256;

const LowRankKernels& kernels() { return pick(avx512::lowrank, avx2::lowrank); }

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

// One run of few tokens, and where its h [n, r] begins among those of all runs.
struct ShortRun {
  const float* x;
  float* y;
  const void *a, *b;
  Factor a_type, b_type;
  int64_t n, r, h;
  float scaling;
  bool same_rows;  // as the run before: one thread adds both
};

// y[run] += scaling * (x[run] Aᵀ) B for each run, with A [r, in] and B [r, out], the transpose of LoRA's: ranks differ between runs.
void add_low_rank_runs(Tensor y, const Tensor& x, at::IntArrayRef starts, at::IntArrayRef ends, TensorList a, TensorList b, at::ArrayRef<double> scalings) {
  check_rows(y, "y");
  check_rows(x, "x");
  y.unsafeGetTensorImpl()->bump_version();
  TORCH_CHECK(x.size(0) == y.size(0), "x and y must have the same rows, got ", x.size(0), " and ", y.size(0));
  TORCH_CHECK(a.size() == b.size() && a.size() == scalings.size(), "every run has a, b and a scaling, got ", a.size(), ", ", b.size(), " and ", scalings.size());
  check_runs(y, starts, ends, a.size());
  const int64_t in = x.size(1), out = y.size(1), x_stride = x.stride(0), y_stride = y.stride(0);
  std::vector<ShortRun> runs;
  int64_t h_size = 0, largest = 0, last_end = 0;
  for (size_t i = 0; i < a.size(); i++) {
    check_frozen(a[i], "a");
    check_frozen(b[i], "b");
    TORCH_CHECK(a[i].dim() == 2 && b[i].dim() == 2 && a[i].size(0) == b[i].size(0) && a[i].size(1) == in && b[i].size(1) == out, "a must have the shape [r, ",
                in, "] and b [r, ", out, "], got ", a[i].sizes(), " and ", b[i].sizes());
    TORCH_CHECK(a[i].is_contiguous() && b[i].is_contiguous(), "a and b must be contiguous");
    const Factor a_type = factor_of(a[i], "a"), b_type = factor_of(b[i], "b");
    const int64_t n = ends[i] - starts[i], r = a[i].size(0);
    if (n == 0 || r == 0) continue;
    if (n > kFewTokens) {
      const Tensor h = at::mm(x.narrow(0, starts[i], n), a[i].to(at::kFloat).t());
      y.narrow(0, starts[i], n).addmm_(h, b[i].to(at::kFloat), 1, scalings[i]);
      continue;
    }
    runs.push_back({x.const_data_ptr<float>() + starts[i] * x_stride, y.mutable_data_ptr<float>() + starts[i] * y_stride, a[i].const_data_ptr(),
                    b[i].const_data_ptr(), a_type, b_type, n, r, h_size, static_cast<float>(scalings[i]), !runs.empty() && starts[i] < last_end});
    last_end = ends[i];
    h_size += n * r;
    largest = std::max(largest, r);
  }
  // Tiles of one run follow one another, so that a thread reads a factor from its beginning to its end.
  const int64_t rank_tiles = (largest + kRankTile - 1) / kRankTile, column_tiles = (out + kColumnTile - 1) / kColumnTile;
  const int64_t count = static_cast<int64_t>(runs.size());
  if (count == 0) return;
  const Tensor hidden = at::empty({h_size}, x.options());
  float* h = hidden.mutable_data_ptr<float>();
  at::parallel_for(0, count * rank_tiles, grain(kRankTile * in), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const ShortRun& run = runs[tile / rank_tiles];
      const int64_t first = tile % rank_tiles * kRankTile;
      if (first < run.r) kernels().down(run.a_type, run.x, x_stride, run.n, run.a, in, first, std::min(first + kRankTile, run.r), run.r, h + run.h);
    }
  });
  at::parallel_for(0, count * column_tiles, grain(kColumnTile * largest), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t first = tile % column_tiles * kColumnTile;
      auto run = runs.begin() + tile / column_tiles;
      if (run->same_rows) continue;
      do {
        kernels().up(run->b_type, h + run->h, run->n, run->r, run->b, out, first, std::min(first + kColumnTile, out), run->scaling, run->y, y_stride);
      } while (++run != runs.end() && run->same_rows);
    }
  });
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
    const float* gain = gains[i].const_data_ptr<float>();
    float* rows = y.mutable_data_ptr<float>();
    for (int64_t row = starts[i]; row < ends[i]; row++)
      for (int64_t o = 0; o < out; o++) rows[row * y.stride(0) + o] *= gain[o];
  }
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("add_low_rank_runs_(Tensor(a!) y, Tensor x, int[] starts, int[] ends, Tensor[] a, Tensor[] b, float[] scalings) -> ()", add_low_rank_runs);
  m.def("scale_runs_(Tensor(a!) y, int[] starts, int[] ends, Tensor[] gains) -> ()", scale_runs);
}

}  // namespace
}  // namespace graft
