#include "kernels/cross_entropy.h"

#include "product.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowsOfChunk = 256;   // predicted rows whose logits are in memory at a time
constexpr int64_t kTableTile = 4096;    // vocabulary rows of the head that are unpacked, or packed, at a time

// Calls body(first vocabulary row, rows) for tiles of the head. An exact product with a dense head is one call.
template <typename Body>
void tiles(const Weight& head, bool reduced, Body body) {
  const int64_t step = head.dense() && !reduced ? head.out() : kTableTile;
  for (int64_t first = 0; first < head.out(); first += step) body(first, std::min(step, head.out() - first));
}

// On a GPU nothing is read back, so rows without a target are computed too: they have no loss and no gradient.
constexpr int64_t kCudaRowsOfChunk = 1024;

Tensor cuda_losses(const Tensor& h, const Weight& head, const Tensor& targets, const Tensor& dh, Tensor dw) {
  const at::ScalarType type = factor_type(h);
  const Tensor hidden = h.to(type), table = head.all(type).to(type), labels = targets.contiguous();
  const int64_t n = h.size(0), v = head.out();
  const Tensor losses = at::empty({n}, h.options().dtype(at::kFloat));
  for (int64_t first = 0; first < n; first += kCudaRowsOfChunk) {
    const int64_t rows = std::min(kCudaRowsOfChunk, n - first);
    const Tensor x = hidden.narrow(0, first, rows), logits = at::mm(x, table.t());
    launch(h, "cross_entropy.cu", instance_of("cross_entropy", {number_name(type)}), {rows}, block_for(v, 512), memory_of(logits),
           memory_of(labels.narrow(0, first, rows)), v, memory_of(losses.narrow(0, first, rows)));
    if (dh.defined()) dh.narrow(0, first, rows).copy_(at::mm(logits, table));
    if (dw.defined()) dw.add_(at::mm(logits.t(), x));
  }
  return losses.sum(at::kDouble).to(at::kFloat);
}

// The sum of the cross-entropies of softmax(h Wᵀ) against targets, over the rows whose target is not negative. The gradient of h (and of W
// where it is trained) is computed chunk by chunk in the forward pass, so that only the logits of one chunk are in memory.
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static void keep(AutogradContext* ctx, const Tensor& dh, const Tensor& dw, const Tensor& weight) {
    ctx->saved_data["dh"] = dh;
    ctx->saved_data["dw"] = dw;
    ctx->saved_data["leaf"] = reinterpret_cast<int64_t>(dw.defined() && weight.is_leaf() ? weight.unsafeGetTensorImpl() : nullptr);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& weight, int64_t format, const Tensor& targets) {
    check_number(h, "h");
    const Weight head = weight_of(weight, format);
    const int64_t v = head.out(), c = head.in();
    TORCH_CHECK(h.dim() == 2 && h.size(1) == c && targets.dim() == 1 && targets.size(0) == h.size(0) && targets.scalar_type() == at::kLong,
                "h must have the shape [n, ", c, "] and targets int64 [n], got ", h.sizes(), " and ", targets.sizes());
    if (runs_cuda_kernels(h)) {
      const Tensor dh = h.requires_grad() ? at::empty_like(h) : Tensor(), dw = head.dense() && weight.requires_grad() ? at::zeros_like(weight) : Tensor();
      const Tensor loss = cuda_losses(h, head, targets, dh, dw);
      keep(ctx, dh, dw, weight);
      return loss;
    }
    const Tensor predicted = at::nonzero(targets.ge(0)).squeeze(1);
    const Tensor labels = targets.index_select(0, predicted);
    const int64_t n = predicted.size(0);
    TORCH_CHECK_INDEX(n == 0 || labels.max().item<int64_t>() < v, "label ", labels.max().item<int64_t>(), " is outside the vocabulary of ", v);
    // Forward runs without recording: the inputs show which gradients are needed.
    const bool needs_dh = h.requires_grad(), needs_dw = head.dense() && weight.requires_grad();
    Tensor dh = needs_dh ? at::zeros_like(h) : Tensor();
    Tensor dw = needs_dw ? at::zeros_like(weight) : Tensor();
    const auto& kernels = pick(avx512::cross_entropy, avx2::cross_entropy);
    const Reduced reduced = needs_dw ? Reduced() : reduced_products();
    double total = 0;
    Tensor buffer = at::empty({std::min(n, kRowsOfChunk), v}, h.options());
    Tensor losses = at::empty({std::min(n, kRowsOfChunk)}, at::kDouble);
    for (int64_t first = 0; first < n; first += kRowsOfChunk) {
      const int64_t rows = std::min(kRowsOfChunk, n - first);
      const Tensor positions = predicted.narrow(0, first, rows);
      const Tensor hidden = h.index_select(0, positions);
      Tensor logits = buffer.narrow(0, 0, rows);
      tiles(head, reduced.forward, [&](int64_t start, int64_t count) { product_rows(hidden, head, start, count, logits.narrow(1, start, count)); });
      const int64_t* label = labels.const_data_ptr<int64_t>() + first;
      at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
        kernels.rows(logits.mutable_data_ptr<float>(), label, begin, end, v, losses.mutable_data_ptr<double>());
      });
      for (int64_t i = 0; i < rows; i++) total += losses.const_data_ptr<double>()[i];
      if (needs_dh) {
        Tensor gradient = at::zeros({rows, c}, h.options());
        tiles(head, reduced.backward, [&](int64_t start, int64_t count) { product_rows_backward(logits.narrow(1, start, count), head, start, count, gradient); });
        dh.index_copy_(0, positions, gradient);
      }
      if (needs_dw) dw.addmm_(logits.t(), hidden);
    }
    keep(ctx, dh, dw, weight);
    return at::scalar_tensor(total, h.options());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    // The node lives as long as the loss: what it kept would be in memory twice, since autograd adds to a gradient that others refer to in a
    // copy. A second backward pass through the node is an error.
    Tensor dh = std::move(ctx->saved_data["dh"]).toTensor(), dw = std::move(ctx->saved_data["dw"]).toTensor();
    if (const int64_t leaf = ctx->saved_data["leaf"].toInt()) gradient_waits(reinterpret_cast<const c10::TensorImpl*>(leaf), dw);
    ctx->saved_data.clear();
    if (dh.defined()) dh.mul_(grads[0]);
    if (dw.defined()) dw.mul_(grads[0]);
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
