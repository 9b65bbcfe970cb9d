// The two products of LoRA's backward pass that read the whole output gradient, in one pass over it. General matrix libraries are slow
// for them: one side is only `rank` wide.
#pragma once

#include <cstdint>

namespace graft {

struct LowRankKernels {
  // g [n, out] (rows g_stride apart), h [n, r] and b_t [r, out] contiguous, r a multiple of 8. For the rows begin <= i < end:
  //   dh[i, j] = sum over o of g[i, o] b_t[j, o]          (written)
  //   db_t[j, o] += sum over i of h[i, j] g[i, o]         (added to)
  void (*backward)(const float* g, int64_t g_stride, const float* h, const float* b_t, int64_t begin, int64_t end, int64_t out, int64_t r, float* dh,
                   float* db_t);
};

namespace avx2 { extern const LowRankKernels lowrank; }
namespace avx512 { extern const LowRankKernels lowrank; }

}  // namespace graft
