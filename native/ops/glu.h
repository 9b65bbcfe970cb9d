#pragma once
#include "kernels/glu.h"

#include "shared.h"

namespace graft {

Activation activation(std::string_view name);

// Returns one of gate and up as both have to be: of one element type, which they may not be on a GPU, and contiguous there.
at::Tensor glu_input(const at::Tensor& tensor, const at::Tensor& other);

// Returns act(gate) * up, and the gradients of gate and up.
at::Tensor glu_forward(const at::Tensor& gate, const at::Tensor& up, Activation act);
std::pair<at::Tensor, at::Tensor> glu_backward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& dy, Activation act);

}  // namespace graft
