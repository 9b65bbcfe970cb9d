#include "kernels/rope.h"

#include "shared.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// x [n, heads, d], cos and sin [n, half]
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) {
  const int64_t n = x.size(0), heads = x.size(1), d = x.size(2), half = cos.size(1);
  if (runs_cuda_kernels(x)) {
    const at::ScalarType type = inverse ? x.scalar_type() : c10::promoteTypes(x.scalar_type(), cos.scalar_type());
    const Tensor y = at::empty({n, heads, d}, x.options().dtype(type));
    launch(x, "rope.cu", instance_of("rotate", {number_name(x.scalar_type()), number_name(cos.scalar_type()), number_name(type)}), {n},
           block_for(heads * half), memory_of(x), x.stride(0), memory_of(cos), memory_of(sin), inverse ? -1.0f : 1.0f, static_cast<int>(heads),
           static_cast<int>(d), static_cast<int>(half), memory_of(y));
    return y;
  }
  Tensor y = at::empty({n, heads, d}, x.options());
  const auto& kernels = pick(avx512::rope, avx2::rope);
  at::parallel_for(0, n, grain(heads * d), [&](int64_t begin, int64_t end) {
    kernels.rotate(x.const_data_ptr<float>(), x.stride(0), cos.const_data_ptr<float>(), sin.const_data_ptr<float>(), inverse, begin, end, heads, d,
                   half, y.mutable_data_ptr<float>());
  });
  return y;
}

struct Rope : torch::autograd::Function<Rope> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    check_number(x, "x");
    check_number(cos, "cos");
    check_number(sin, "sin");
    TORCH_CHECK(x.dim() == 3 && cos.dim() == 2 && cos.sizes() == sin.sizes() && cos.size(0) == x.size(0) && 2 * cos.size(1) <= x.size(2) &&
                    cos.is_contiguous() && sin.is_contiguous(),
                "x must have the shape [n, heads, d], cos and sin must be contiguous [n, half], got ", x.sizes(), ", ", cos.sizes(), ", ", sin.sizes());
    ctx->save_for_backward({cos, sin});
    return rotate(rows_of_heads(x), cos, sin, false);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotate(rows_of_heads(grads[0]), saved[0], saved[1], true), {}, {}};
  }
};

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("rope(Tensor x, Tensor cos, Tensor sin) -> Tensor", [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
    check_frozen(cos, "cos");
    check_frozen(sin, "sin");
    return Rope::apply(x, cos, sin);
  });
}

}  // namespace
}  // namespace graft
