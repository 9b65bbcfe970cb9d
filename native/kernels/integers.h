// Quantisation to integers of 2 to 8 bits with a scale, and a zero point, for each group of a row.
//
// The rules are torchao 0.18's (choose_qparams_affine and _fake_quantize_affine), bit for bit. With codes from low = -2^(bits - 1) to
// high = 2^(bits - 1) - 1, and a range that always includes zero:
//   symmetric:   scale = largest magnitude / ((high - low) / 2), zero point 0
//   asymmetric:  scale = (max - min) / (high - low), zero point = low - round(min / scale), brought into the range of codes
//   scale >= the smallest normal float; code = round(x * (1 / scale)) + zero point, brought into the range; value = (code - zero point) * scale
// All rounding is to nearest, ties to even.
#pragma once

#include <cstdint>

namespace graft {

struct IntegerScheme {
  int32_t bits;    // 2 to 8
  int64_t group;   // elements that share a scale; it divides the width of a row
  bool symmetric;
  bool bf16;       // the numbers are bfloat16: scales and zero points are computed with every result rounded to it
};

// What is wanted of the rows [n_rows, in]; the rest is null. Rows have in / group scales and zero points.
struct IntegerResults {
  float* values;        // [n_rows, in]
  uint32_t* clipped;    // [n_rows, (in + 31) / 32]: bit j of a row is set where the code of element j was brought into the range
  int8_t* codes;        // [n_rows, in]
  float* scales;        // [n_rows, in / group]
  int8_t* zero_points;  // [n_rows, in / group]
};

struct IntegerKernels {
  // `given_scales` [n_rows, in / group]: scales to use with a zero point of 0 instead of the rule's; or null.
  // Returns n_rows, or the first row with a number that is not finite, or too large for its group's scale to be.
  int64_t (*quantize)(const IntegerScheme&, const float* x, const float* given_scales, int64_t n_rows, int64_t in, const IntegerResults&);

  // dx = dy where the bit of `clipped` is not set, else 0; words as above.
  void (*masked)(const uint32_t* clipped, const float* dy, int64_t n_rows, int64_t in, float* dx);

  // The derivatives of values with given scales s: dx = dy where the code was not clipped, else 0; ds = sum over the group of
  // dy (code - x / s), without the second part where the code was clipped. Either result may be null.
  void (*backward_given)(const IntegerScheme&, const float* x, const float* scales, const float* dy, int64_t n_rows, int64_t in, float* dx,
                         float* dscales);

  // Writes codes, scales and zero points to blocks of 32 (blocks.h, INTb); 32 divides `group`.
  void (*pack)(const IntegerScheme&, const int8_t* codes, const float* scales, const int8_t* zero_points, int64_t n_rows, int64_t in,
               uint8_t* dst);
};

namespace avx2 { extern const IntegerKernels integers; }
namespace avx512 { extern const IntegerKernels integers; }

}  // namespace graft
