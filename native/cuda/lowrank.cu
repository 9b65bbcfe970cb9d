// Products with one side that is only `rank` wide (LoRA, arXiv 2106.09685), for one adapter or for runs of tokens with one each. h is float32.
#include "numbers.cuh"
#include "runs.h"

using namespace graft_cuda;

template <class X, class F>
__device__ inline void down_tile(const X* x, Int x_stride, const F* a, Int width, Int tokens, int ranks, int rank, float* h) {
  float sums[kTokens][kRanks] = {};
  for (Int i = threadIdx.x % 32; i < width; i += 32) {
    float xs[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; t++) xs[t] = t < tokens ? value(x[t * x_stride + i]) : 0.0f;
#pragma unroll
    for (int j = 0; j < kRanks; j++) {
      const float factor = j < ranks ? value(a[j * width + i]) : 0.0f;
#pragma unroll
      for (int t = 0; t < kTokens; t++) sums[t][j] += xs[t] * factor;
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
#pragma unroll
    for (int j = 0; j < kRanks; j++) {
      const float sum = warp_sum(sums[t][j]);
      if (threadIdx.x % 32 == 0 && t < tokens && j < ranks) h[t * rank + j] = sum;
    }
  }
}

// h[t, j] = sum over i of x[t, i] a[j, i]. A warp has kTokens tokens and kRanks ranks; grid: tokens, ranks, runs.
template <class X>
__global__ void down(Runs runs, const X* x, Int x_stride, Int width, float* h) {
  const Run& run = runs.run[blockIdx.z];
  const Int token = (static_cast<Int>(blockIdx.x) * kWarps + threadIdx.x / 32) * kTokens;
  const int first = blockIdx.y * kRanks;
  if (token >= run.tokens || first >= run.rank) return;  // whole warps
  const X* from = x + (run.start + token) * x_stride;
  float* to = h + run.h + token * run.rank + first;
  const Int tokens = run.tokens - token, at = first * width;
  const int ranks = run.rank - first;
  if (run.type == 0) down_tile(from, x_stride, static_cast<const float*>(run.factor) + at, width, tokens, ranks, run.rank, to);
  if (run.type == 1) down_tile(from, x_stride, static_cast<const Half*>(run.factor) + at, width, tokens, ranks, run.rank, to);
  if (run.type == 2) down_tile(from, x_stride, static_cast<const Bfloat16*>(run.factor) + at, width, tokens, ranks, run.rank, to);
}

template <class Y, class F>
__device__ inline void up_tile(const float* h, const F* b, Int width, Int tokens, int rank, float scaling, Y* y, Int y_stride) {
  float sums[kTokens] = {};
  for (int j = 0; j < rank; j++) {
    const float factor = value(b[j * width]);
#pragma unroll
    for (int t = 0; t < kTokens; t++) sums[t] += t < tokens ? h[t * rank + j] * factor : 0.0f;
  }
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
    if (t < tokens) put(y[t * y_stride], value(y[t * y_stride]) + scaling * sums[t]);
  }
}

// y[t, o] += scaling * (sum over j of h[t, j] b[j, o]). A thread has one column of kTokens tokens; grid: columns, tokens, runs.
template <class Y>
__global__ void up(Runs runs, const float* h, Int width, Y* y, Int y_stride) {
  const Run& run = runs.run[blockIdx.z];
  const Int column = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x, token = static_cast<Int>(blockIdx.y) * kTokens;
  if (column >= width || token >= run.tokens) return;
  const float* from = h + run.h + token * run.rank;
  Y* to = y + (run.start + token) * y_stride + column;
  const Int tokens = run.tokens - token;
  if (run.type == 0) up_tile(from, static_cast<const float*>(run.factor) + column, width, tokens, run.rank, run.scaling, to, y_stride);
  if (run.type == 1) up_tile(from, static_cast<const Half*>(run.factor) + column, width, tokens, run.rank, run.scaling, to, y_stride);
  if (run.type == 2) up_tile(from, static_cast<const Bfloat16*>(run.factor) + column, width, tokens, run.rank, run.scaling, to, y_stride);
}

// parts[p, j, i] = sum over the tokens t of part p, `rows` of them, of h[t, j] x[t, i]: the gradient of a factor. A thread has one column of
// kRanks ranks; grid: columns, ranks, parts.
template <class X>
__global__ void outer(const float* h, const X* x, Int x_stride, Int n, Int width, int rank, Int rows, float* parts) {
  const Int column = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= width) return;
  const Int first = blockIdx.z * rows, end = first + rows < n ? first + rows : n;
  const int first_rank = blockIdx.y * kRanks, ranks = rank - first_rank;
  float sums[kRanks] = {};
  for (Int t = first; t < end; t++) {
    const float factor = value(x[t * x_stride + column]);
#pragma unroll
    for (int j = 0; j < kRanks; j++) sums[j] += j < ranks ? h[t * rank + first_rank + j] * factor : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < kRanks; j++) {
    if (j < ranks) parts[(blockIdx.z * static_cast<Int>(rank) + first_rank + j) * width + column] = sums[j];
  }
}
