// Products with weights: in float32 or, where the weight is frozen, with their factors rounded to bfloat16; n: rows of activations.
#pragma once
#include "shared.h"

namespace graft {

// Whether products of the forward and of the backward pass round their factors to bfloat16; sums and results are float32 either way. It is
// for processors with bfloat16 instructions. Products that are too small to be faster stay in float32, and so do those with a trained weight.
struct Reduced {
  bool forward = false, backward = false;
};
Reduced reduced_products();

// The type of the factors, and results, of products with x on a GPU: bfloat16 where LibTorch's autocast says so (device.cc), else that of x.
at::ScalarType factor_type(const at::Tensor& x);

// Returns x [n, in] times the transposed weight, plus the bias [out] if there is one: [n, out].
at::Tensor product(const at::Tensor& x, const Weight& weight, const std::optional<at::Tensor>& bias);

// The products of x with several weights of the same width. biases: none, or one for each.
std::vector<at::Tensor> products(const at::Tensor& x, const std::vector<Weight>& weights, at::TensorList biases);

// Returns g [n, out] times the weight: [n, in], the gradient of x in `product`.
at::Tensor product_backward(const at::Tensor& g, const Weight& weight);

// The same two for some rows of a weight: y [n, count] = x rowsᵀ (written), and dx [n, in] += g [n, count] rows. y and g may have strided rows.
void product_rows(const at::Tensor& x, const Weight& weight, int64_t first, int64_t count, at::Tensor y);
void product_rows_backward(const at::Tensor& g, const Weight& weight, int64_t first, int64_t count, at::Tensor dx);

// What the backward pass of an operator with one weight needs of it: the weight by reference (it is never copied), and whether the bias is trained.
void save_weight(torch::autograd::AutogradContext* ctx, const Weight& w, const std::optional<at::Tensor>& bias);
Weight saved_weight(torch::autograd::AutogradContext* ctx);

// Return the gradients of the bias and of a dense weight from those of the outputs g [n, out] and the inputs x [n, in]; undefined where the
// bias is frozen, and where x was not saved because the weight is.
at::Tensor bias_gradient(torch::autograd::AutogradContext* ctx, const at::Tensor& g);
at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x);

// Is told by an operator that it returns this dense gradient of `table`, a leaf, in the running backward pass. Lookups in the table, which come
// later in the pass, add to it.
void gradient_waits(const c10::TensorImpl* table, const at::Tensor& gradient);

}  // namespace graft
