// Products with frozen weights, in float32 or with their factors rounded to bfloat16; n: rows of activations.
#pragma once
#include "shared.h"

namespace graft {

// Whether products of the forward and of the backward pass round their factors to bfloat16; sums and results are float32 either way. It is
// for processors with bfloat16 instructions. Products that are too small to be faster stay in float32.
struct Reduced {
  bool forward = false, backward = false;
};
Reduced reduced_products();

// Returns x [n, in] times the transposed weight, plus the bias [out] if there is one: [n, out].
at::Tensor product(const at::Tensor& x, const Weight& weight, const std::optional<at::Tensor>& bias);

// Returns g [n, out] times the weight: [n, in], the gradient of x in `product`.
at::Tensor product_backward(const at::Tensor& g, const Weight& weight);

// The same two for some rows of a weight: y [n, count] = x rowsᵀ (written), and dx [n, in] += g [n, count] rows. y and g may have strided rows.
void product_rows(const at::Tensor& x, const Weight& weight, int64_t first, int64_t count, at::Tensor y);
void product_rows_backward(const at::Tensor& g, const Weight& weight, int64_t first, int64_t count, at::Tensor dx);

}  // namespace graft
