// Products with frozen weights, in float32 or with their factors rounded to bfloat16. Letters: n rows of activations.
#pragma once
#include "shared.h"

namespace graft {

// Whether products of the forward and of the backward pass round their factors to bfloat16; sums and results are float32 either way. For
// processors with such instructions. Products too small to gain stay exact.
struct Reduced {
  bool forward = false, backward = false;
};
Reduced reduced_products();

// x [n, in] times the weight's transpose => [n, out]; with a bias [out] added where there is one.
at::Tensor product(const at::Tensor& x, const Weight& weight, const std::optional<at::Tensor>& bias);

// g [n, out] times the weight => [n, in]: the gradient of the above for x.
at::Tensor product_backward(const at::Tensor& g, const Weight& weight);

// The same two for some rows of a weight: y [n, count] = x rowsᵀ (written), and dx [n, in] += g [n, count] rows. Rows of y and g may lie apart.
void product_rows(const at::Tensor& x, const Weight& weight, int64_t first, int64_t count, at::Tensor y);
void product_rows_backward(const at::Tensor& g, const Weight& weight, int64_t first, int64_t count, at::Tensor dx);

}  // namespace graft
