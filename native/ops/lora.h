// Parts of LoRA (arXiv 2106.09685) that several operators need. A [r, in], B [out, r]; the weight of a layer becomes W + s B A.
#pragma once
#include "shared.h"

namespace graft {

// Refuses factors that do not fit a weight [out, in].
void check_update(const at::Tensor& a, const at::Tensor& b, int64_t out, int64_t in);

// Writes n rows of W + s B A from the row `first` on; `weight` points to these rows of W. Every element has the same bits wherever and however
// it is computed (kernels/lowrank.h). A and B are contiguous.
void merge_rows(const float* weight, const at::Tensor& a, const at::Tensor& b, double scaling, int64_t first, int64_t n, float* to);

// Returns both small products of a backward pass that read g [n, out], in one pass over it, for h [n, r] = x Aᵀ:
// dh [n, r] = g B and dB [out, r] = gᵀ h.
std::pair<at::Tensor, at::Tensor> backward_products(const at::Tensor& g, const at::Tensor& h, const at::Tensor& b);

}  // namespace graft
