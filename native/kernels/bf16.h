// Operands of bfloat16 products: rounding, and the order in which oneDNN's brgemm wants its second factor.
#pragma once

#include <cstdint>

namespace graft {

struct Bf16Kernels {
  // dst[i] = src[i], nearest, ties to even; NaN stays NaN.
  void (*round)(const float* src, int64_t n, uint16_t* dst);
  // A panel holds pairs (k, k + 1) of one column side by side: panel[k / 2][column] (VNNI order). k is even.
  // From rows that are the columns, [columns, k] contiguous:
  void (*panel_of_rows)(const uint16_t* rows, int64_t columns, int64_t k, uint32_t* panel);
  // From a matrix [k, columns], rows `stride` elements apart:
  void (*panel_of_columns)(const uint16_t* from, int64_t stride, int64_t columns, int64_t k, uint32_t* panel);
};

namespace avx2 { extern const Bf16Kernels bf16; }
namespace avx512 { extern const Bf16Kernels bf16; }

}  // namespace graft
