// Operands of bfloat16 products: rounding, and the layout that oneDNN's brgemm needs for its second factor.
#pragma once

#include <cstdint>

namespace graft {

struct Bf16Kernels {
  // dst[i] = src[i], rounded to nearest, ties to even; NaN stays NaN.
  void (*round)(const float* src, int64_t n, uint16_t* dst);
  // A panel has the pair (k, k + 1) of a column in one element: panel[k / 2][column] (VNNI layout). k is even.
  // From rows that are the columns, [columns, k] contiguous:
  void (*panel_of_rows)(const uint16_t* rows, int64_t columns, int64_t k, uint32_t* panel);
  // From a matrix [k, columns], rows `stride` elements apart:
  void (*panel_of_columns)(const uint16_t* from, int64_t stride, int64_t columns, int64_t k, uint32_t* panel);
};

namespace avx2 { extern const Bf16Kernels bf16; }
namespace avx512 { extern const Bf16Kernels bf16; }

}  // namespace graft
