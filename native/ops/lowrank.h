// The products of LoRA that have one side only `rank` wide (r), on the processor and on GPUs: h [n, r] is float32.
#pragma once
#include "cuda/runs.h"
#include "kernels/lowrank.h"
#include "shared.h"

namespace graft {

inline const LowRankKernels& lowrank_kernels() { return pick(avx512::lowrank, avx2::lowrank); }

// Returns x [n, in] times the transposed A [r, in].
at::Tensor rank_product(const at::Tensor& x, const at::Tensor& a);

// y [n, out] += scaling (h B) for B [r, out].
void add_update(at::Tensor y, const at::Tensor& h, const at::Tensor& b, double scaling);

// Returns hᵀ x [r, in], the gradient of a factor.
at::Tensor factor_gradient(const at::Tensor& h, const at::Tensor& x);

// Runs of tokens, each with a factor of its own: the launches of native/cuda/lowrank.cu. The factors live until the work is done.
graft_cuda::Run cuda_run(const at::Tensor& factor, int64_t start, int64_t tokens, int64_t h, double scaling);
void cuda_down(const at::Tensor& x, at::ArrayRef<graft_cuda::Run> runs, const at::Tensor& h);
void cuda_up(const at::Tensor& y, at::ArrayRef<graft_cuda::Run> runs, const at::Tensor& h);

}  // namespace graft
