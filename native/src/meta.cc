// Shapes of operators that LibTorch knows on the device meta in Python only: with these, whole steps of a model run on tensors without numbers.
#include <ATen/ExpandUtils.h>

#include "torch.h"

namespace graft {
namespace {

using at::Tensor;

Tensor index_select(const Tensor& self, int64_t dim, const Tensor& index) {
  auto sizes = self.sizes().vec();
  if (!sizes.empty()) sizes[c10::maybe_wrap_dim(dim, self.dim())] = index.numel();
  return at::empty(sizes, self.options());
}

Tensor same(const Tensor& self) { return at::empty(self.sizes(), self.options()); }

Tensor where(const Tensor& condition, const Tensor& self, const Tensor& other) {
  const auto sizes = at::infer_size(condition.sizes(), at::infer_size(self.sizes(), other.sizes()));
  return at::empty(sizes, self.options().dtype(at::result_type(self, other)));
}

Tensor logical_or(const Tensor& self, const Tensor& other) {
  return at::empty(at::infer_size(self.sizes(), other.sizes()), self.options().dtype(at::kBool));
}

std::tuple<Tensor, Tensor, Tensor> native_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized, const std::optional<Tensor>& /*weight*/,
                                                     const std::optional<Tensor>& /*bias*/, double /*eps*/) {
  auto sizes = input.sizes().vec();
  for (size_t i = sizes.size() - normalized.size(); i < sizes.size(); i++) sizes[i] = 1;
  return {same(input), at::empty(sizes, input.options()), at::empty(sizes, input.options())};
}

std::tuple<Tensor, Tensor, Tensor> native_layer_norm_backward(const Tensor& /*gradient*/, const Tensor& input, c10::SymIntArrayRef /*normalized*/,
                                                              const Tensor& /*mean*/, const Tensor& /*rstd*/, const std::optional<Tensor>& weight,
                                                              const std::optional<Tensor>& bias, std::array<bool, 3> wanted) {
  return {wanted[0] ? same(input) : Tensor(), wanted[1] && weight ? same(*weight) : Tensor(), wanted[2] && bias ? same(*bias) : Tensor()};
}

Tensor embedding_dense_backward(const Tensor& gradient, const Tensor& /*indices*/, c10::SymInt rows, c10::SymInt /*padding*/, bool /*by_frequency*/) {
  return at::empty({rows.expect_int(), gradient.size(-1)}, gradient.options());
}

TORCH_LIBRARY_IMPL(aten, Meta, m) {
  m.impl("index_select", index_select);
  m.impl("relu", same);
  m.impl("where.self", where);
  m.impl("logical_or", logical_or);
  m.impl("native_layer_norm", native_layer_norm);
  m.impl("native_layer_norm_backward", native_layer_norm_backward);
  m.impl("embedding_dense_backward", embedding_dense_backward);
}

}  // namespace
}  // namespace graft
