// Products of LoRA with one side that is only `rank` wide, for which general matrix libraries are slow: the two of the backward pass that read
// the whole output gradient, in one pass over it; the weight with its update, whose bits must not depend on how it is computed; and the two of
// an update that acts on one or a few tokens.
#pragma once

#include <cstdint>

namespace graft {

// The numbers that the factors of an update consist of.
enum class Factor { F32, F16, BF16 };

struct LowRankKernels {
  // g [n, out] (rows g_stride apart), h [n, r] and b_t [r, out] contiguous, r a multiple of 8. For the rows begin <= i < end:
  //   dh[i, j] = sum over o of g[i, o] b_t[j, o]          (written)
  //   db_t[j, o] += sum over i of h[i, j] g[i, o]         (added to)
  void (*backward)(const float* g, int64_t g_stride, const float* h, const float* b_t, int64_t begin, int64_t end, int64_t out, int64_t r, float* dh,
                   float* db_t);

  // y[i, j] = w[i, j] + scaling * (sum over k of b[i, k] a[k, j]), for rows of w and b [.., r] and a [r, in], all contiguous. The sum is added up
  // in the order of k; each of its steps, and the last one, is an FMA. So every element has the same bits on every processor, in any tile.
  void (*merge)(const float* w, const float* a, const float* b, float scaling, int64_t n_rows, int64_t in, int64_t r, float* y);

  // For n tokens of x [n, in] (rows x_stride apart) and the ranks begin <= j < end of a [r, in], contiguous:
  //   h[t, j] = sum over i of x[t, i] a[j, i]             (written; h [n, r] contiguous)
  void (*down)(Factor type, const float* x, int64_t x_stride, int64_t n, const void* a, int64_t in, int64_t begin, int64_t end, int64_t r, float* h);

  // For n tokens of y [n, out] (rows y_stride apart), the columns begin <= o < end of b_t [r, out], contiguous, and h [n, r]:
  //   y[t, o] += scaling * (sum over j of h[t, j] b_t[j, o])
  void (*up)(Factor type, const float* h, int64_t n, int64_t r, const void* b_t, int64_t out, int64_t begin, int64_t end, float scaling, float* y,
             int64_t y_stride);
};

namespace avx2 { extern const LowRankKernels lowrank; }
namespace avx512 { extern const LowRankKernels lowrank; }

}  // namespace graft
