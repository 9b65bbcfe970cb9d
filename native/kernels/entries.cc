#include "entries.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

// The transpose of 8 x 8 numbers.
void transpose_tile(const float* from, int64_t from_stride, float* to, int64_t stride) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    const __m256 a = _mm256_loadu_ps(from + i * from_stride), b = _mm256_loadu_ps(from + (i + 1) * from_stride);
    pairs[i] = _mm256_unpacklo_ps(a, b);
    pairs[i + 1] = _mm256_unpackhi_ps(a, b);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; half++) {
      fours[i + 2 * half] = _mm256_shuffle_ps(pairs[i + half], pairs[i + half + 2], 0x44);
      fours[i + 2 * half + 1] = _mm256_shuffle_ps(pairs[i + half], pairs[i + half + 2], 0xee);
    }
  }
  for (int j = 0; j < 4; j++) {
    _mm256_storeu_ps(to + j * stride, _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x20));
    _mm256_storeu_ps(to + (j + 4) * stride, _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x31));
  }
}

void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t stride) {
  constexpr int64_t kTile = 8, kLine = 16;  // a cache line of `from` is used whole before the next rows
  const int64_t whole_rows = rows / kTile * kTile;
  for (int64_t line = 0; line < columns; line += kLine) {
    const int64_t end = columns - line < kLine ? columns : line + kLine;
    for (int64_t i = 0; i < whole_rows; i += kTile) {
      int64_t j = line;
      for (; j + kTile <= end; j += kTile) transpose_tile(from + i * from_stride + j, from_stride, to + j * stride + i, stride);
      for (; j < end; j++)
        for (int64_t k = i; k < i + kTile; k++) to[j * stride + k] = from[k * from_stride + j];
    }
    for (int64_t j = line; j < end; j++)
      for (int64_t i = whole_rows; i < stride; i++) to[j * stride + i] = i < rows ? from[i * from_stride + j] : 0.0f;
  }
}

void dots(const float* g, const float* x_t, int64_t tokens, const int32_t* columns, int64_t count, float* sums) {
  constexpr int kAtOnce = 4;
  int64_t e = 0;
  for (; e + kAtOnce <= count; e += kAtOnce) {
    F sum[kAtOnce];
    const float* x[kAtOnce];
    for (int i = 0; i < kAtOnce; i++) {
      sum[i] = zero();
      x[i] = x_t + columns[e + i] * tokens;
    }
    for (int64_t t = 0; t < tokens; t += F::W) {
      const F gradient = load(g + t);
      for (int i = 0; i < kAtOnce; i++) sum[i] = fma(gradient, load(x[i] + t), sum[i]);
    }
    _mm_storeu_ps(sums + e, _mm_add_ps(_mm_loadu_ps(sums + e), hsum4(sum[0], sum[1], sum[2], sum[3])));
  }
  for (; e < count; e++) {
    F sum = zero();
    for (int64_t t = 0; t < tokens; t += F::W) sum = fma(load(g + t), load(x_t + columns[e] * tokens + t), sum);
    sums[e] += hsum(sum);
  }
}

void take_off(const float* sums, const int32_t* columns, int64_t count, const float* a_t, const float* b, int64_t r, float* da_t, float* db) {
  for (int64_t e = 0; e < count; e++) {
    const F sum(sums[e]);
    const float* a = a_t + columns[e] * r;
    float* da = da_t + columns[e] * r;
    for (int64_t k = 0; k < r; k += F::W) {
      const int n = r - k < F::W ? static_cast<int>(r - k) : F::W;
      store_n(db + k, fnma(sum, load_n(a + k, n), load_n(db + k, n)), n);
      store_n(da + k, fnma(sum, load_n(b + k, n), load_n(da + k, n)), n);
    }
  }
}

}  // namespace

extern const EntryKernels entries{transpose, dots, take_off};

}  // namespace graft::GRAFT_ISA
