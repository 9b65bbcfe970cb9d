#include "kernels/cross_entropy.h"

#include "product.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowsOfChunk = 256;   // predicted rows whose logits exist at one time
constexpr int64_t kTableTile = 4096;    // vocabulary rows of the head that are unpacked, or packed, at one time

// Calls body(first vocabulary row, rows). An exact product with a dense head is one call.
template <typename Body>
void tiles(const Weight& head, bool reduced, Body body) {
  const int64_t step = head.dense() && !reduced ? head.out() : kTableTile;
  for (int64_t first = 0; first < head.out(); first += step) body(first, std::min(step, head.out() - first));
}

// Sum of the cross-entropies of softmax(h Wᵀ) against targets, over the rows whose target is not negative. The gradient for h (and for W
// where it is trained) is formed chunk by chunk in the forward pass, so that logits of one chunk are all that ever exists.
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& weight, int64_t format, const Tensor& targets) {
    check_float(h, "h");
    const Weight head = weight_of(weight, format);
    const int64_t v = head.out(), c = head.in();
    TORCH_CHECK(h.dim() == 2 && h.size(1) == c && targets.dim() == 1 && targets.size(0) == h.size(0) && targets.scalar_type() == at::kLong,
                "h must be [n, ", c, "] and targets int64 [n], got ", h.sizes(), " and ", targets.sizes());
    const Tensor kept = at::nonzero(targets.ge(0)).squeeze(1);
    const Tensor labels = targets.index_select(0, kept);
    const int64_t n = kept.size(0);
    TORCH_CHECK_INDEX(n == 0 || labels.max().item<int64_t>() < v, "a label is outside the vocabulary of ", v);
    // Forward runs with recording off: whether gradients are wanted is seen from the inputs.
    const bool want_h = h.requires_grad(), want_w = head.dense() && weight.requires_grad();
    Tensor dh = want_h ? at::zeros_like(h) : Tensor();
    Tensor dw = want_w ? at::zeros_like(weight) : Tensor();
    const auto& kernels = pick(avx512::cross_entropy, avx2::cross_entropy);
    const Reduced reduced = reduced_products();
    double total = 0;
    Tensor buffer = at::empty({std::min(n, kRowsOfChunk), v}, h.options());
    Tensor losses = at::empty({std::min(n, kRowsOfChunk)}, at::kDouble);
    for (int64_t first = 0; first < n; first += kRowsOfChunk) {
      const int64_t rows = std::min(kRowsOfChunk, n - first);
      const Tensor places = kept.narrow(0, first, rows);
      const Tensor hidden = h.index_select(0, places);
      Tensor logits = buffer.narrow(0, 0, rows);
      tiles(head, reduced.forward, [&](int64_t start, int64_t count) { product_rows(hidden, head, start, count, logits.narrow(1, start, count)); });
      const int64_t* label = labels.const_data_ptr<int64_t>() + first;
      at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
        kernels.rows(logits.mutable_data_ptr<float>(), label, begin, end, v, losses.mutable_data_ptr<double>());
      });
      for (int64_t i = 0; i < rows; i++) total += losses.const_data_ptr<double>()[i];
      if (want_h) {
        Tensor gradient = at::zeros({rows, c}, h.options());
        tiles(head, reduced.backward, [&](int64_t start, int64_t count) { product_rows_backward(logits.narrow(1, start, count), head, start, count, gradient); });
        dh.index_copy_(0, places, gradient);
      }
      if (want_w) dw.addmm_(logits.t(), hidden);
    }
    ctx->saved_data["dh"] = dh;
    ctx->saved_data["dw"] = dw;
    return at::scalar_tensor(total, h.options());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    // A second backward through the same node would scale twice; autograd frees saved_data with the node, and retaining is not offered.
    Tensor dh = ctx->saved_data["dh"].toTensor(), dw = ctx->saved_data["dw"].toTensor();
    const float scale = grads[0].item<float>();
    if (dh.defined()) dh.mul_(scale);
    if (dw.defined()) dw.mul_(scale);
    return {dh, dw, {}, {}};
  }
};

Tensor linear_cross_entropy(const Tensor& h, const Tensor& weight, int64_t format, const Tensor& targets) {
  return LinearCrossEntropy::apply(h, weight, format, targets);
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("linear_cross_entropy(Tensor h, Tensor weight, int format, Tensor targets) -> Tensor", linear_cross_entropy);
}

}  // namespace
}  // namespace graft
