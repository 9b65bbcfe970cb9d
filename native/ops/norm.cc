#include "kernels/norm.h"

#include "shared.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const NormKernels& norm_kernels() { return pick(avx512::norm, avx2::norm); }

constexpr const char* kNormFile = "norm.cu";
constexpr int64_t kNormRowsOfPart = 64;  // of the sums of a weight's gradient

std::string norm_instance(const char* kernel, const Tensor& x, const Tensor& weight, int at_once) {
  return instance_of(kernel, {number_name(x.scalar_type()), number_name(weight.scalar_type()), std::to_string(at_once)});
}

void cuda_forward(const Tensor& x, const Tensor& delta, const Tensor& weight, float eps, int64_t n, int64_t c, const Tensor& sum, const Tensor& y,
                  const Tensor& inverse_rms) {
  const int at_once = numbers_at_once(c, {x, delta, weight});
  launch(x, kNormFile, norm_instance("rms_forward", x, weight, at_once), {n}, block_for(ceil_div(c, at_once)), memory_of(x), memory_of(delta), memory_of(weight), eps, c,
         delta.defined() ? memory_of(sum) : nullptr, memory_of(y), memory_of(inverse_rms));
}

void cuda_backward(const Tensor& s, const Tensor& weight, const Tensor& inverse_rms, const Tensor& dy, const Tensor& dsum, int64_t n, int64_t c,
                   const Tensor& dx) {
  const int at_once = numbers_at_once(c, {s, weight, dy, dsum});
  launch(s, kNormFile, norm_instance("rms_backward", s, weight, at_once), {n}, block_for(ceil_div(c, at_once)), memory_of(s), memory_of(weight), memory_of(inverse_rms),
         memory_of(dy), memory_of(dsum), c, memory_of(dx));
}

Tensor cuda_backward_weight(const Tensor& s, const Tensor& weight, const Tensor& inverse_rms, const Tensor& dy, int64_t n, int64_t c) {
  const int64_t rows = std::max(kNormRowsOfPart, ceil_div(n, 1024)), parts = ceil_div(n, rows);
  const Tensor sums = at::empty({parts, c}, inverse_rms.options());
  launch(s, kNormFile, instance_of("rms_backward_weight", {number_name(s.scalar_type())}), {ceil_div(c, 128), parts}, 128, memory_of(s), memory_of(inverse_rms),
         memory_of(dy), n, c, rows, memory_of(sums));
  return sums.sum(0).to(weight.scalar_type());
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  // Without delta only the normalised tensor is returned; with it, the sum x + delta first.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& delta, const Tensor& weight, double eps) {
    check_number(x, "x");
    check_number(weight, "weight");
    const int64_t c = weight.size(0);
    TORCH_CHECK(x.size(-1) == c, "the last dimension of x must be that of the weight, ", c, ", got ", x.sizes());
    TORCH_CHECK(!delta || delta->sizes() == x.sizes(), "x and delta must have the same shape, got ", x.sizes(), " and ", delta->sizes());
    const Tensor input = x.contiguous();
    const Tensor added = delta ? delta->contiguous() : Tensor();
    const bool on_gpu = runs_cuda_kernels(x);
    const int64_t n = input.numel() / c;
    Tensor sum = delta ? at::empty_like(input) : input;
    Tensor y = at::empty_like(input);
    Tensor inverse_rms = at::empty({n}, input.options().dtype(at::kFloat));
    if (on_gpu) cuda_forward(input, added, weight, static_cast<float>(eps), n, c, sum, y, inverse_rms);
    else at::parallel_for(0, n, grain(c), [&](int64_t begin, int64_t end) {
      norm_kernels().forward(input.const_data_ptr<float>(), delta ? added.const_data_ptr<float>() : nullptr, weight.const_data_ptr<float>(),
                        static_cast<float>(eps), begin, end, c, delta ? sum.mutable_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>(),
                        inverse_rms.mutable_data_ptr<float>());
    });
    ctx->save_for_backward({sum, weight, inverse_rms});
    ctx->saved_data["delta"] = delta.has_value();
    ctx->saved_data["dweight"] = weight.requires_grad();
    ctx->set_materialize_grads(false);
    return delta ? variable_list{sum, y} : variable_list{y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &s = saved[0], &weight = saved[1], &inverse_rms = saved[2];
    const bool delta = ctx->saved_data["delta"].toBool();
    const Tensor dsum = delta && grads[0].defined() ? grads[0].contiguous() : Tensor();
    const Tensor& dy_input = delta ? grads[1] : grads[0];
    if (!dy_input.defined()) return {dsum, delta ? dsum : Tensor(), {}, {}};
    const Tensor dy = dy_input.contiguous();
    const int64_t c = weight.size(0), n = s.numel() / c;
    Tensor dx = at::empty_like(s);
    const bool on_gpu = runs_cuda_kernels(s);
    if (on_gpu) cuda_backward(s, weight, inverse_rms, dy, dsum, n, c, dx);
    else at::parallel_for(0, n, grain(c), [&](int64_t begin, int64_t end) {
      norm_kernels().backward(s.const_data_ptr<float>(), weight.const_data_ptr<float>(), inverse_rms.const_data_ptr<float>(), dy.const_data_ptr<float>(),
                         dsum.defined() ? dsum.const_data_ptr<float>() : nullptr, begin, end, c, dx.mutable_data_ptr<float>());
    });
    Tensor dweight;
    if (ctx->saved_data["dweight"].toBool() && on_gpu) {
      dweight = cuda_backward_weight(s, weight, inverse_rms, dy, n, c);
    } else if (ctx->saved_data["dweight"].toBool()) {
      dweight = at::zeros_like(weight);
      norm_kernels().backward_weight(s.const_data_ptr<float>(), inverse_rms.const_data_ptr<float>(), dy.const_data_ptr<float>(), 0, n, c,
                                dweight.mutable_data_ptr<float>());
    }
    return {dx, delta ? dx : Tensor(), dweight, {}};
  }
};

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) { return RmsNorm::apply(x, std::nullopt, weight, eps)[0]; }

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps) {
  const at::ScalarType type = c10::promoteTypes(x.scalar_type(), delta.scalar_type());
  const auto both = RmsNorm::apply(x.to(type), delta.to(type), weight, eps);
  return {both[0], both[1]};
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm);
  m.def("add_rms_norm(Tensor x, Tensor delta, Tensor weight, float eps) -> (Tensor sum, Tensor normed)", add_rms_norm);
}

}  // namespace
}  // namespace graft
