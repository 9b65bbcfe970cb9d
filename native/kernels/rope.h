// Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split form of LLaMA's checkpoints: the pair (i, i + half) is rotated.
#pragma once

#include <cstdint>

namespace graft {

struct RopeKernels {
  // x, y [n, heads, d]; x_stride: floats from one token to the next (y is contiguous); cos, sin [n, half], 2 half <= d (dimensions
  // from 2 half on are copied). inverse rotates the other way: that is the gradient.
  void (*rotate)(const float* x, int64_t x_stride, const float* cos, const float* sin, bool inverse, int64_t begin, int64_t end, int64_t heads,
                 int64_t d, int64_t half, float* y);
};

namespace avx2 { extern const RopeKernels rope; }
namespace avx512 { extern const RopeKernels rope; }

}  // namespace graft
