#include "lowrank.h"

namespace graft {

using at::Tensor;
using graft_cuda::kRanks;
using graft_cuda::kTokens;
using graft_cuda::Run;
using graft_cuda::Runs;

namespace {

constexpr const char* kLowRankFile = "lowrank.cu";
constexpr int kLowRankThreads = 128;  // kWarps warps
constexpr int64_t kRowsOfPart = 256;  // of the sums of a factor's gradient

std::string lowrank_instance(const char* kernel, const Tensor& tensor) { return instance_of(kernel, {number_name(tensor.scalar_type())}); }

// Calls body(runs, how many, the most tokens of one, the highest rank) for as many runs as a launch takes.
template <typename Body>
void batches(at::ArrayRef<Run> all, Body body) {
  for (size_t first = 0; first < all.size(); first += graft_cuda::kMostRuns) {
    const auto some = all.slice(first, std::min<size_t>(graft_cuda::kMostRuns, all.size() - first));
    Runs runs = {};
    int64_t tokens = 0, rank = 0;
    for (size_t i = 0; i < some.size(); i++) {
      runs.run[i] = some[i];
      tokens = std::max<int64_t>(tokens, some[i].tokens);
      rank = std::max<int64_t>(rank, some[i].rank);
    }
    body(runs, static_cast<int64_t>(some.size()), tokens, rank);
  }
}

Tensor with_rows(const Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous(); }

}  // namespace

Run cuda_run(const Tensor& factor, int64_t start, int64_t tokens, int64_t h, double scaling) {
  const at::ScalarType type = factor.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, "a and b must be float32, float16 or bfloat16, got ", type);
  return {factor.const_data_ptr(), type == at::kFloat ? 0 : type == at::kHalf ? 1 : 2, static_cast<int>(factor.size(0)), start, tokens, h,
          static_cast<float>(scaling)};
}

void cuda_down(const Tensor& x, at::ArrayRef<Run> all, const Tensor& h) {
  batches(all, [&](const Runs& runs, int64_t count, int64_t tokens, int64_t rank) {
    launch(x, kLowRankFile, lowrank_instance("down", x), {ceil_div(tokens, kTokens * graft_cuda::kWarps), ceil_div(rank, kRanks), count}, kLowRankThreads, runs, memory_of(x),
           x.stride(0), x.size(1), memory_of(h));
  });
}

void cuda_up(const Tensor& y, at::ArrayRef<Run> all, const Tensor& h) {
  batches(all, [&](const Runs& runs, int64_t count, int64_t tokens, int64_t) {
    launch(y, kLowRankFile, lowrank_instance("up", y), {ceil_div(y.size(1), kLowRankThreads), ceil_div(tokens, kTokens), count}, kLowRankThreads, runs, memory_of(h), y.size(1),
           memory_of(y), y.stride(0));
  });
}

Tensor rank_product(const Tensor& x, const Tensor& a) {
  if (!runs_cuda_kernels(x)) return at::mm(x, a.t());
  const Tensor rows = with_rows(x), factor = a.contiguous();
  Tensor h = at::empty({x.size(0), a.size(0)}, x.options().dtype(at::kFloat));
  cuda_down(rows, {cuda_run(factor, 0, x.size(0), 0, 1)}, h);
  return h;
}

void add_update(Tensor y, const Tensor& h, const Tensor& b, double scaling) {
  if (!runs_cuda_kernels(y)) {
    y.addmm_(h, b, 1, scaling);
    return;
  }
  const Tensor hidden = h.to(at::kFloat).contiguous(), factor = b.contiguous();
  cuda_up(y, {cuda_run(factor, 0, y.size(0), 0, scaling)}, hidden);
}

Tensor factor_gradient(const Tensor& h, const Tensor& x) {
  if (!runs_cuda_kernels(x)) return at::mm(h.t(), x);
  const Tensor rows = with_rows(x), hidden = h.contiguous();
  const int64_t n = x.size(0), width = x.size(1), r = h.size(1);
  const int64_t part = std::max(kRowsOfPart, ceil_div(n, 64)), parts = ceil_div(n, part);
  const Tensor sums = at::empty({parts, r, width}, hidden.options());
  launch(rows, kLowRankFile, lowrank_instance("outer", rows), {ceil_div(width, kLowRankThreads), ceil_div(r, kRanks), parts}, kLowRankThreads, memory_of(hidden), memory_of(rows),
         rows.stride(0), n, width, static_cast<int>(r), part, memory_of(sums));
  return parts == 1 ? sums.squeeze(0) : sums.sum(0);
}

}  // namespace graft
