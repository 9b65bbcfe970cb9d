#include "kernels/adamw_8bit.h"

#include <cmath>
#include <limits>

#include "shared.h"

namespace graft {
namespace {

using at::Tensor;
using at::TensorList;

const Adam8Kernels& adam8_kernels() { return pick(avx512::adam8, avx2::adam8); }

NearestCode nearest_code(const Tensor& codes, const char* name) {
  check_float(codes, name);
  TORCH_CHECK(codes.numel() == 256 && codes.is_contiguous(), name, " must be 256 numbers, got ", codes.sizes());
  NearestCode table;
  std::memcpy(table.codes, codes.const_data_ptr<float>(), sizeof table.codes);
  for (int i = 0; i < 255; i++) {
    TORCH_CHECK(table.codes[i] < table.codes[i + 1], name, " must ascend");
    table.middles[i] = (table.codes[i] + table.codes[i + 1]) / 2.0f;
  }
  table.middles[255] = std::numeric_limits<float>::infinity();
  // Of the first cell the smallest number is 0 and not 2^-24. Ratios stop at 1, which begins the last cell.
  const auto bound = [](int cell) {
    const uint32_t bits = static_cast<uint32_t>(cell + NearestCode::kFirst) << NearestCode::kShift;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int negative = 0; negative < 2; negative++) {
    for (int cell = 0; cell < NearestCode::kCells; cell++) {
      const float from = negative ? -bound(cell + 1) : cell == 0 ? 0.0f : bound(cell), to = negative ? (cell == 0 ? -0.0f : -bound(cell)) : bound(cell + 1);
      const auto start = std::lower_bound(table.middles, table.middles + 255, from) - table.middles;
      table.start[negative][cell] = static_cast<uint8_t>(start);
      TORCH_CHECK(start >= 254 || cell == NearestCode::kCells - 1 || !(table.middles[start + 1] < to), name, " are too close together");
    }
  }
  return table;
}

void check_state(const Tensor& parameter, const Tensor& grad, const Tensor& codes, const Tensor& largest) {
  check_float(parameter, "a parameter");
  check_frozen(parameter, "a parameter");
  check_float(grad, "a gradient");
  check_float(largest, "the magnitudes of blocks");
  const int64_t n = parameter.numel();
  TORCH_CHECK(parameter.is_contiguous(), "a parameter must be contiguous, got the strides ", parameter.strides());
  TORCH_CHECK(grad.sizes() == parameter.sizes(), "a gradient must have its parameter's shape, ", parameter.sizes(), ", got ", grad.sizes());
  TORCH_CHECK(codes.scalar_type() == at::kByte && codes.is_contiguous() && codes.numel() == n, "a state must hold a byte for each number of its parameter, ", n, ", got ",
              codes.scalar_type(), " ", codes.sizes());
  TORCH_CHECK(largest.is_contiguous() && largest.numel() == (n + kAdamBlock - 1) / kAdamBlock, "a state must have a magnitude for each block of ", kAdamBlock, ", got ",
              largest.sizes());
}

void adamw_8bit(TensorList parameters, TensorList grads, TensorList means, TensorList mean_ranges, TensorList squares, TensorList square_ranges,
                TensorList steps, const Tensor& signed_codes, const Tensor& unsigned_codes, double lr, double beta1, double beta2, double weight_decay,
                double eps) {
  for (const auto list : {grads, means, mean_ranges, squares, square_ranges, steps})
    TORCH_CHECK(list.size() == parameters.size(), "each parameter has a gradient, four states and a step count: ", parameters.size(), " and ", list.size());
  const NearestCode of_means = nearest_code(signed_codes, "signed_codes"), of_squares = nearest_code(unsigned_codes, "unsigned_codes");
  for (size_t i = 0; i < parameters.size(); i++) {
    const Tensor &parameter = parameters[i], grad = grads[i].contiguous();
    check_state(parameter, grad, means[i], mean_ranges[i]);
    check_state(parameter, grad, squares[i], square_ranges[i]);
    const double step = steps[i].item<double>();
    const AdamSettings settings{static_cast<float>(1 - lr * weight_decay),
                                static_cast<float>(lr / (1 - std::pow(beta1, step))),
                                static_cast<float>(beta1),
                                static_cast<float>(beta2),
                                static_cast<float>(std::sqrt(1 - std::pow(beta2, step))),
                                static_cast<float>(eps)};
    const int64_t n = parameter.numel(), blocks = mean_ranges[i].numel();
    auto* p = parameter.mutable_data_ptr<float>();
    const auto* g = grad.const_data_ptr<float>();
    auto *m = means[i].mutable_data_ptr<uint8_t>(), *v = squares[i].mutable_data_ptr<uint8_t>();
    auto *m_max = mean_ranges[i].mutable_data_ptr<float>(), *v_max = square_ranges[i].mutable_data_ptr<float>();
    at::parallel_for(0, blocks, grain(kAdamBlock), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++) {
        const int64_t at = b * kAdamBlock, count = std::min(kAdamBlock, n - at);
        adam8_kernels().block(p + at, g + at, m + at, m_max + b, v + at, v_max + b, count, settings, of_means, of_squares);
      }
    });
    parameter.unsafeGetTensorImpl()->bump_version();
  }
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def(
      "adamw_8bit_(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] means, Tensor(c!)[] mean_ranges, Tensor(d!)[] squares, "
      "Tensor(e!)[] square_ranges, Tensor[] steps, Tensor signed_codes, Tensor unsigned_codes, *, float lr, float beta1, float beta2, "
      "float weight_decay, float eps) -> ()",
      adamw_8bit);
}

}  // namespace
}  // namespace graft
