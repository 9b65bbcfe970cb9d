// RMSNorm with a preceding residual addition: y = s / rms(s) * w with s = x + delta (arXiv 1910.07467, eq. 4; eps inside
// the root as in LLaMA). Rows are [n, c], contiguous; all functions take a range of rows, so that the caller can distribute them.
#pragma once

#include <cstdint>

namespace graft {

struct NormKernels {
  // Writes sum (null where delta is null) and y [n, c], and inverse_rms [n] for backward.
  void (*forward)(const float* x, const float* delta, const float* weight, float eps, int64_t begin, int64_t end, int64_t c, float* sum, float* y,
                  float* inverse_rms);
  // dx = dsum + d(norm): dsum (may be null) is the gradient of s along the residual path.
  void (*backward)(const float* s, const float* weight, const float* inverse_rms, const float* dy, const float* dsum, int64_t begin, int64_t end,
                   int64_t c, float* dx);
  // Adds to dweight [c].
  void (*backward_weight)(const float* s, const float* inverse_rms, const float* dy, int64_t begin, int64_t end, int64_t c, float* dweight);
};

namespace avx2 { extern const NormKernels norm; }
namespace avx512 { extern const NormKernels norm; }

}  // namespace graft
