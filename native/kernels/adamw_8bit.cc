#include "adamw_8bit.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

void decode(const uint8_t* codes, const NearestCode& table, float largest, int64_t n, float* values) {
  for (int64_t i = 0; i < n; i++) values[i] = table.codes[codes[i]] * largest;
}

// Values whose largest magnitude is not 0 become codes.
void encode(const float* values, const NearestCode& table, float largest, int64_t n, uint8_t* codes) {
  float ratios[kAdamBlock];
  const F divisor(largest);
  for (int64_t i = 0; i < kAdamBlock; i += F::W) store(ratios + i, load(values + i) / divisor);
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    __builtin_memcpy(&bits, ratios + i, sizeof bits);
    int cell = static_cast<int>((bits & 0x7fffffffu) >> NearestCode::kShift) - NearestCode::kFirst;
    cell = cell < 0 ? 0 : cell >= NearestCode::kCells ? NearestCode::kCells - 1 : cell;
    const uint8_t start = table.start[bits >> 31][cell];
    codes[i] = static_cast<uint8_t>(start + (ratios[i] > table.middles[start] ? 1 : 0));
  }
}

void quantise(const float* values, const NearestCode& table, int64_t n, uint8_t* codes, float* largest) {
  F most = zero();
  for (int64_t i = 0; i < kAdamBlock; i += F::W) most = max(abs(load(values + i)), most);
  *largest = hmax(most);
  if (*largest > 0.0f) encode(values, table, *largest, n, codes);
  else
    for (int64_t i = 0; i < n; i++) codes[i] = 0;
}

void block(float* parameter, const float* grad, uint8_t* mean, float* mean_max, uint8_t* square, float* square_max, int64_t n,
           const AdamSettings& s, const NearestCode& signed_codes, const NearestCode& unsigned_codes) {
  float m[kAdamBlock] = {}, v[kAdamBlock] = {};  // past n they stay 0
  decode(mean, signed_codes, *mean_max, n, m);
  decode(square, unsigned_codes, *square_max, n, v);
  const F beta1(s.beta1), beta2(s.beta2), rest1(1.0f - s.beta1), rest2(1.0f - s.beta2);
  for (int64_t i = 0; i < n; i += F::W) {
    const int lanes = n - i < F::W ? static_cast<int>(n - i) : F::W;
    const F g = load_n(grad + i, lanes);
    const F next_m = fma(load(m + i), beta1, g * rest1), next_v = fma(load(v + i), beta2, g * g * rest2);
    store(m + i, next_m);
    store(v + i, next_v);
    const F denominator = sqrt(next_v) / F(s.correction2) + F(s.eps);
    store_n(parameter + i, fnma(F(s.step_size), next_m / denominator, load_n(parameter + i, lanes) * F(s.keep)), lanes);
  }
  quantise(m, signed_codes, n, mean, mean_max);
  quantise(v, unsigned_codes, n, square, square_max);
}

}  // namespace

extern const Adam8Kernels adam8{block};

}  // namespace graft::GRAFT_ISA
