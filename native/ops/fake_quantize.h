// How the rows of a weight are rounded in training, and their derivatives: for the operators that round a weight in a product.
#pragma once
#include "kernels/integers.h"

#include "shared.h"

namespace graft {

inline const IntegerKernels& integer_kernels() { return pick(avx512::integers, avx2::integers); }

// Calls run(first row, count, numbers, values) for ranges of the rows of x, on several threads; bfloat16 rows are widened, and their values
// narrowed. `run` returns how many of its rows it could round; a row that it cannot is an error. `values` may be undefined.
using RoundRows = c10::function_ref<int64_t(int64_t, int64_t, const float*, float*)>;
void for_rows(const at::Tensor& x, const at::Tensor& values, RoundRows run);

// The rounding of a matrix [rows, width]: to blocks of a format, or to integers, whose scales [rows, groups] may be given.
struct Rounding {
  BlockFormat format;
  IntegerScheme scheme;  // of integers
  at::Tensor scales;     // float32, contiguous; undefined: the rule's

  bool integers() const { return format >= BlockFormat::INT2; }
  bool clips() const { return integers() || graft::clips(format); }
  const float* given(int64_t row) const { return scales.defined() ? scales.const_data_ptr<float>() + row * scales.size(1) : nullptr; }
  // Rounds n rows from the row `first` on, which may be in place; `clipped` as in IntegerResults. Returns how many rows it could round.
  int64_t round(int64_t first, int64_t n, int64_t width, const float* from, float* to, uint32_t* clipped) const;
};

// Checks the arguments. `format` is the number of a block format; of an integer format, with `group` elements for each scale (0: the row).
Rounding rounding_of(const at::Tensor& x, int64_t format, int64_t group, bool symmetric, const std::optional<at::Tensor>& scales);

// int32 [rows, words]: bits of clipped elements, as kernels write them; and the words of a row, null where x is undefined.
at::Tensor clipped_bits(const at::Tensor& x);
uint32_t* words_of(const at::Tensor& bits, int64_t row);

// x = 0 where the bit of an element is set, in rows [first, first + x.size(0)) of the bits. x: float32, contiguous.
void mask_rows(const at::Tensor& bits, int64_t first, at::Tensor& x);

}  // namespace graft
