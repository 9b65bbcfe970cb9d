// Quantisation in training: weights and activations rounded to a number format and back, with straight-through gradients. What a backward
// pass keeps is one bit for each element, or nothing where a format clips nothing: neither the weight nor its rounded copy.
#include "fake_quantize.h"

namespace graft {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void for_rows(const Tensor& x, const Tensor& values, RoundRows run) {
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  std::atomic<int64_t> refused = rows;
  at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
    int64_t done = begin;
    if (x.scalar_type() == at::kFloat) {
      float* to = values.defined() ? values.mutable_data_ptr<float>() + begin * width : nullptr;
      done += run(begin, end - begin, x.const_data_ptr<float>() + begin * width, to);
    } else {
      std::vector<float> row(width), rounded(values.defined() ? width : 0);
      for (; done < end; done++) {
        const c10::BFloat16* from = x.const_data_ptr<c10::BFloat16>() + done * width;
        std::copy(from, from + width, row.begin());
        if (run(done, 1, row.data(), values.defined() ? rounded.data() : nullptr) == 0) break;
        if (values.defined()) std::copy(rounded.begin(), rounded.end(), values.mutable_data_ptr<c10::BFloat16>() + done * width);
      }
    }
    if (done < end) {
      int64_t first = refused;
      while (done < first && !refused.compare_exchange_weak(first, done)) {}
    }
  });
  TORCH_CHECK(refused == rows, "row ", refused.load(), " holds a number that is not finite, or too large for the scale of its block");
}

namespace {

void check_numbers(const Tensor& x, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16), name,
              " must be float32 or bfloat16 on the CPU, got ", x.scalar_type());
  TORCH_CHECK(x.dim() >= 1, name, " must have at least one axis");
}

IntegerScheme scheme_of(const Tensor& x, int64_t bits, int64_t group, bool symmetric) {
  check_numbers(x, "x");
  TORCH_CHECK(bits >= 2 && bits <= 8, "integers of 2 to 8 bits are supported, got ", bits);
  const int64_t width = x.size(-1), elements = group == 0 ? width : group;
  TORCH_CHECK(elements > 0 && width % elements == 0, "a group of ", group, " does not divide a width of ", width);
  return {static_cast<int32_t>(bits), elements, symmetric, x.scalar_type() == at::kBFloat16};
}

constexpr int64_t integer_format(int64_t bits) { return static_cast<int64_t>(BlockFormat::INT2) - 2 + bits; }

// The scales [rows, groups] of symmetric integers are given, and trained.
IntegerScheme given_scheme(const Tensor& x, const Tensor& scale, int64_t bits) {
  check_float(x, "x");
  check_float(scale, "scale");
  TORCH_CHECK(x.dim() == 2 && scale.dim() == 2 && scale.size(0) == x.size(0) && scale.size(1) > 0 && x.size(1) % scale.size(1) == 0,
              "scales must be [rows, groups] for a matrix [rows, width], got ", scale.sizes(), " for ", x.sizes());
  return scheme_of(x, bits, x.size(1) / scale.size(1), true);
}

}  // namespace

int64_t Rounding::round(int64_t first, int64_t n, int64_t width, const float* from, float* to, uint32_t* clipped) const {
  if (!integers()) return block_kernels().fake_quantize(format, from, n, width, to, clipped);
  return integer_kernels().quantize(scheme, from, given(first), n, width, {to, clipped, nullptr, nullptr, nullptr});
}

Rounding rounding_of(const Tensor& x, int64_t format, int64_t group, bool symmetric, const std::optional<Tensor>& scales) {
  const auto block_format = static_cast<BlockFormat>(format);
  const BlockLayout layout = block_layout(block_format);
  check_numbers(x, "weight");
  TORCH_CHECK(layout.elements > 1, "no format in blocks has the number ", format);
  if (block_format >= BlockFormat::INT2) {
    const int64_t bits = format - integer_format(0);
    if (scales) {
      const IntegerScheme scheme = given_scheme(x, *scales, bits);
      TORCH_CHECK(symmetric && (group == 0 || group == scheme.group), "scales that are given are those of symmetric integers in groups of ", group,
                  ", got ", scales->sizes(), " for ", x.sizes());
      return {block_format, scheme, scales->contiguous()};
    }
    return {block_format, scheme_of(x, bits, group, symmetric), {}};
  }
  TORCH_CHECK(!scales, "only integers have scales that are given");
  TORCH_CHECK(x.size(-1) % layout.elements == 0, "a width of ", x.size(-1), " is not a multiple of the block size ", layout.elements);
  return {block_format, {}, {}};
}

Tensor clipped_bits(const Tensor& x) {
  const int64_t width = x.size(-1);
  return at::empty({width == 0 ? 0 : x.numel() / width, clipped_words(width)}, x.options().dtype(at::kInt));
}
uint32_t* words_of(const Tensor& bits, int64_t row) {
  return bits.defined() ? reinterpret_cast<uint32_t*>(bits.mutable_data_ptr<int32_t>()) + row * bits.size(1) : nullptr;
}

void mask_rows(const Tensor& bits, int64_t first, Tensor& x) {
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
    float* numbers = x.mutable_data_ptr<float>() + begin * width;
    integer_kernels().masked(words_of(bits, first + begin), numbers, end - begin, width, numbers);
  });
}

namespace {

// The gradient of everything that is rounded with scales that are constants.
variable_list masked_gradient(AutogradContext* ctx, const Tensor& dy, int others) {
  variable_list gradients(1 + others);
  const auto saved = ctx->get_saved_variables();
  if (saved.empty()) {
    gradients[0] = dy;
    return gradients;
  }
  Tensor dx = at::empty(dy.sizes(), dy.options().dtype(at::kFloat)).copy_(dy);
  mask_rows(saved[0], 0, dx);
  gradients[0] = dx.to(dy.scalar_type());
  return gradients;
}

// Returns x rounded with scales that are constants, and saves the bits for masked_gradient.
Tensor rounded(AutogradContext* ctx, const Tensor& input, const Rounding& rounding, bool is_trained) {
  const Tensor x = input.contiguous();
  Tensor values = at::empty_like(x), bits = is_trained && rounding.clips() ? clipped_bits(x) : Tensor();
  for_rows(x, values, [&](int64_t row, int64_t n, const float* from, float* to) {
    return rounding.round(row, n, x.size(-1), from, to, words_of(bits, row));
  });
  if (bits.defined()) ctx->save_for_backward({bits});
  return values;
}

struct FakeQuantizeBlocks : torch::autograd::Function<FakeQuantizeBlocks> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, int64_t number, bool is_trained) {
    TORCH_CHECK(number < static_cast<int64_t>(BlockFormat::INT2), "integers are rounded by fake_quantize_integers");
    return rounded(ctx, weight, rounding_of(weight, number, 0, true, {}), is_trained);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) { return masked_gradient(ctx, grads[0], 2); }
};

struct FakeQuantizeIntegers : torch::autograd::Function<FakeQuantizeIntegers> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t bits, int64_t group, bool symmetric, bool is_trained) {
    return rounded(ctx, x, {static_cast<BlockFormat>(integer_format(bits)), scheme_of(x, bits, group, symmetric), {}}, is_trained);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) { return masked_gradient(ctx, grads[0], 4); }
};

struct FakeQuantizeLearned : torch::autograd::Function<FakeQuantizeLearned> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& scale, int64_t bits) {
    const IntegerScheme scheme = given_scheme(weight, scale, bits);
    const Tensor x = weight.contiguous(), s = scale.contiguous();
    Tensor values = at::empty_like(x);
    for_rows(x, values, [&](int64_t row, int64_t n, const float* from, float* to) {
      return integer_kernels().quantize(scheme, from, s.const_data_ptr<float>() + row * s.size(1), n, x.size(1),
                                        {to, nullptr, nullptr, nullptr, nullptr});
    });
    ctx->save_for_backward({weight, scale});
    ctx->saved_data["bits"] = bits;
    ctx->saved_data["dweight"] = weight.requires_grad();
    ctx->saved_data["dscale"] = scale.requires_grad();
    return values;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0].contiguous(), s = saved[1].contiguous(), dy = grads[0].contiguous();
    const IntegerScheme scheme = given_scheme(x, s, ctx->saved_data["bits"].toInt());
    Tensor dx = ctx->saved_data["dweight"].toBool() ? at::empty_like(x) : Tensor();
    Tensor ds = ctx->saved_data["dscale"].toBool() ? at::empty_like(s) : Tensor();
    const int64_t width = x.size(1), groups = s.size(1);
    at::parallel_for(0, x.size(0), grain(width), [&](int64_t begin, int64_t end) {
      integer_kernels().backward_given(scheme, x.const_data_ptr<float>() + begin * width, s.const_data_ptr<float>() + begin * groups,
                                       dy.const_data_ptr<float>() + begin * width, end - begin, width,
                                       dx.defined() ? dx.mutable_data_ptr<float>() + begin * width : nullptr,
                                       ds.defined() ? ds.mutable_data_ptr<float>() + begin * groups : nullptr);
    });
    return {dx, ds, {}};
  }
};

bool records(const Tensor& x) { return at::GradMode::is_enabled() && x.requires_grad(); }

Tensor fake_quantize_blocks(const Tensor& weight, int64_t format) { return FakeQuantizeBlocks::apply(weight, format, records(weight)); }

Tensor fake_quantize_integers(const Tensor& x, int64_t bits, int64_t group, bool symmetric) {
  return FakeQuantizeIntegers::apply(x, bits, group, symmetric, records(x));
}

Tensor fake_quantize_learned(const Tensor& weight, const Tensor& scale, int64_t bits) { return FakeQuantizeLearned::apply(weight, scale, bits); }

// Returns codes [rows, width] int8, scales [rows, groups] float32 and zero points [rows, groups] int8; with `given` its scales and zeros.
std::tuple<Tensor, Tensor, Tensor> quantize_integers(const Tensor& weight, int64_t bits, int64_t group, bool symmetric,
                                                     const std::optional<Tensor>& given) {
  TORCH_CHECK(weight.dim() == 2, "weight must be a matrix, got ", weight.sizes());
  const IntegerScheme scheme = given ? given_scheme(weight, *given, bits) : scheme_of(weight, bits, group, symmetric);
  const Tensor x = weight.contiguous(), s = given ? given->contiguous() : Tensor();
  const int64_t width = x.size(1), groups = width / scheme.group;
  Tensor codes = at::empty(x.sizes(), at::kChar), scales = at::empty({x.size(0), groups}, at::kFloat);
  Tensor zero_points = at::empty(scales.sizes(), at::kChar);
  for_rows(x, Tensor(), [&](int64_t row, int64_t n, const float* from, float*) {
    return integer_kernels().quantize(scheme, from, given ? s.const_data_ptr<float>() + row * groups : nullptr, n, width,
                                      {nullptr, nullptr, codes.mutable_data_ptr<int8_t>() + row * width,
                                       scales.mutable_data_ptr<float>() + row * groups, zero_points.mutable_data_ptr<int8_t>() + row * groups});
  });
  return {codes, scales, zero_points};
}

// Returns blocks of 32 (blocks.h, INTb): codes [rows, width] => uint8 [rows, bytes of a row].
Tensor pack_integers(const Tensor& codes, const Tensor& scales, const Tensor& zero_points, int64_t bits) {
  TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == at::kChar && codes.is_contiguous(), "codes must be a contiguous int8 matrix");
  check_float(scales, "scales");
  TORCH_CHECK(scales.dim() == 2 && scales.size(0) == codes.size(0) && scales.size(1) > 0 && codes.size(1) % (32 * scales.size(1)) == 0 &&
                  zero_points.sizes() == scales.sizes() && zero_points.scalar_type() == at::kChar && scales.is_contiguous() && zero_points.is_contiguous(),
              "scales and zero points must be [rows, groups] with groups of a multiple of 32 codes, got ", scales.sizes(), " for ", codes.sizes());
  TORCH_CHECK(bits >= 2 && bits <= 8, "integers of 2 to 8 bits are supported, got ", bits);
  const int64_t width = codes.size(1), groups = scales.size(1), row_bytes = width / 32 * (5 + 4 * bits);
  const IntegerScheme scheme{static_cast<int32_t>(bits), width / groups, true, false};
  Tensor blocks = at::empty({codes.size(0), row_bytes}, at::kByte);
  at::parallel_for(0, codes.size(0), grain(width), [&](int64_t begin, int64_t end) {
    integer_kernels().pack(scheme, codes.const_data_ptr<int8_t>() + begin * width, scales.const_data_ptr<float>() + begin * groups,
                           zero_points.const_data_ptr<int8_t>() + begin * groups, end - begin, width,
                           blocks.mutable_data_ptr<uint8_t>() + begin * row_bytes);
  });
  return blocks;
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("fake_quantize_blocks(Tensor weight, int format) -> Tensor", fake_quantize_blocks);
  m.def("fake_quantize_integers(Tensor x, int bits, int group, bool symmetric) -> Tensor", fake_quantize_integers);
  m.def("fake_quantize_learned(Tensor weight, Tensor scale, int bits) -> Tensor", fake_quantize_learned);
  m.def("quantize_integers(Tensor weight, int bits, int group, bool symmetric, Tensor? given=None) -> (Tensor codes, Tensor scales, Tensor zero_points)",
        quantize_integers);
  m.def("pack_integers(Tensor codes, Tensor scales, Tensor zero_points, int bits) -> Tensor", pack_integers);
}

}  // namespace
}  // namespace graft
