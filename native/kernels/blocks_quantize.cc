// Quantises fp32 rows to blocks, as ggml's reference functions quantize_row_*_ref do (same rounding, bit for bit), and to NF4.
#include "blocks_tables.h"
#include "blocks_unpack.h"

namespace graft::GRAFT_ISA {
namespace {

// Returns x, rounded: this stops the compiler from fusing a product with the addition that follows, where the rule rounds the product
// first.
GRAFT_INLINE F rounded(F x) {
  __asm__("" : "+x"(x.v));
  return x;
}

// Stores x, rounded towards zero to whole numbers.
#ifdef __AVX512F__
GRAFT_INLINE void store_truncated(int32_t* p, F x) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x.v)); }
GRAFT_INLINE F with_sign_of(F magnitude, F x) {
  const __m512 sign = _mm512_and_ps(x.v, _mm512_set1_ps(-0.0f));
  return _mm512_or_ps(magnitude.v, sign);
}
GRAFT_INLINE void store_f16(uint16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Stores how many of the bounds each lane exceeds.
template <int n> GRAFT_INLINE void store_exceeded(int32_t* p, F x, const float (&bounds)[n]) {
  __m512i count = _mm512_setzero_si512();
  for (float bound : bounds) {
    count = _mm512_mask_add_epi32(count, _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_GT_OQ), count, _mm512_set1_epi32(1));
  }
  _mm512_storeu_si512(p, count);
}
#else
GRAFT_INLINE void store_truncated(int32_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(x.v)); }
GRAFT_INLINE F with_sign_of(F magnitude, F x) {
  return _mm256_or_ps(magnitude.v, _mm256_and_ps(x.v, _mm256_set1_ps(-0.0f)));
}
GRAFT_INLINE void store_f16(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
template <int n> GRAFT_INLINE void store_exceeded(int32_t* p, F x, const float (&bounds)[n]) {
  __m256i count = _mm256_setzero_si256();
  for (float bound : bounds) {
    count = _mm256_sub_epi32(count, _mm256_castps_si256(_mm256_cmp_ps(x.v, _mm256_set1_ps(bound), _CMP_GT_OQ)));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), count);
}
#endif

GRAFT_INLINE void write_f16(uint8_t* p, float x) {
  const uint16_t bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &bits, sizeof bits);
}

GRAFT_INLINE float inverse_or_zero(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

template <int n> GRAFT_INLINE float largest_magnitude(const float* x) {
  F largest = zero();
  for (int j = 0; j < n; j += F::W) largest = max(abs(load(x + j)), largest);
  return hmax(largest);
}

// d = largest magnitude / 127; code = x / d rounded, halves away from zero.
GRAFT_INLINE void quantize_q8_0(const float* x, uint8_t* block) {
  const float d = largest_magnitude<32>(x) / 127.0f;
  const F inverse(inverse_or_zero(d));
  alignas(64) int32_t codes[32];
  // The largest float below one half: with one half itself, 0.49999997 would round up to 1.
  for (int j = 0; j < 32; j += F::W) {
    const F scaled = rounded(load(x + j) * inverse);
    store_truncated(codes + j, scaled + with_sign_of(F(0x1.fffffep-2f), scaled));
  }
  write_f16(block, d);
  for (int j = 0; j < 32; ++j) block[2 + j] = static_cast<uint8_t>(codes[j]);
}

GRAFT_INLINE void write_nibbles(const int32_t (&codes)[32], uint8_t* p) {
  for (int j = 0; j < 16; ++j) {
    const int32_t low = codes[j] < 15 ? codes[j] : 15, high = codes[j + 16] < 15 ? codes[j + 16] : 15;
    p[j] = static_cast<uint8_t>(low | high << 4);
  }
}

// d = the number of largest magnitude (the first of several) / -8; code = x / d + 8 rounded.
GRAFT_INLINE void quantize_q4_0(const float* x, uint8_t* block) {
  const float magnitude = largest_magnitude<32>(x);
  int first = 0;
  while (first < 31 && __builtin_fabsf(x[first]) != magnitude) ++first;
  const float d = (magnitude == 0.0f ? 0.0f : x[first]) / -8.0f;
  const F inverse(inverse_or_zero(d));
  alignas(64) int32_t codes[32];
  for (int j = 0; j < 32; j += F::W) store_truncated(codes + j, rounded(load(x + j) * inverse) + F(8.5f));
  write_f16(block, d);
  write_nibbles(codes, block + 2);
}

// m = minimum, d = range / 15; code = (x - m) / d rounded.
GRAFT_INLINE void quantize_q4_1(const float* x, uint8_t* block) {
  F largest = load(x), negated_minimum = -load(x);
  for (int j = F::W; j < 32; j += F::W) {
    largest = max(load(x + j), largest);
    negated_minimum = max(-load(x + j), negated_minimum);
  }
  float m = -hmax(negated_minimum);
  if (m == 0.0f) {  // the sign of zero is that of the first zero
    int first = 0;
    while (first < 31 && x[first] != 0.0f) ++first;
    m = x[first];
  }
  const float d = (hmax(largest) - m) / 15.0f;
  const F inverse(inverse_or_zero(d)), minimum(m);
  alignas(64) int32_t codes[32];
  for (int j = 0; j < 32; j += F::W) store_truncated(codes + j, rounded((load(x + j) - minimum) * inverse) + F(0.5f));
  write_f16(block, d);
  write_f16(block + 2, m);
  write_nibbles(codes, block + 4);
}

struct Nf4Midpoints {
  float of[15];
  constexpr Nf4Midpoints() : of{} {
    for (int i = 0; i < 15; ++i) of[i] = (kNf4Values[i] + kNf4Values[i + 1]) / 2;
  }
};
constexpr Nf4Midpoints kNf4Midpoints;

// absmax, then the code nearest to x / absmax; exactly between two codes, the lower one (dQuantizeNF4 of bitsandbytes).
GRAFT_INLINE void quantize_nf4(const float* x, uint8_t* block) {
  const float absmax = largest_magnitude<64>(x);
  const F inverse(inverse_or_zero(absmax));
  alignas(64) int32_t codes[64];
  for (int j = 0; j < 64; j += F::W) store_exceeded(codes + j, load(x + j) * inverse, kNf4Midpoints.of);
  __builtin_memcpy(block, &absmax, sizeof absmax);
  for (int j = 0; j < 32; ++j) block[4 + j] = static_cast<uint8_t>(codes[2 * j] << 4 | codes[2 * j + 1]);
}

template <class Store> GRAFT_INLINE void narrow(const float* x, int64_t in, uint8_t* dst, Store&& store_narrow) {
  int64_t j = 0;
  for (; j + F::W <= in; j += F::W) store_narrow(reinterpret_cast<uint16_t*>(dst) + j, load(x + j));
  if (j < in) {
    uint16_t last[F::W];
    store_narrow(last, load_n(x + j, static_cast<int>(in - j)));
    __builtin_memcpy(dst + 2 * j, last, 2 * (in - j));
  }
}

template <BlockFormat format, class QuantizeBlock>
GRAFT_INLINE void each_block(const float* x, int64_t in, uint8_t* dst, QuantizeBlock&& quantize_block) {
  constexpr BlockLayout layout = block_layout(format);
  for (int64_t j = 0; j < in; j += layout.elements, dst += layout.bytes) quantize_block(x + j, dst);
}

void quantize_row(BlockFormat format, const float* x, int64_t in, uint8_t* dst) {
  switch (format) {
    case BlockFormat::F32: __builtin_memcpy(dst, x, in * sizeof(float)); break;
    case BlockFormat::F16: narrow(x, in, dst, store_f16); break;
    case BlockFormat::BF16: narrow(x, in, dst, store_bf16); break;
    case BlockFormat::Q4_0: each_block<BlockFormat::Q4_0>(x, in, dst, quantize_q4_0); break;
    case BlockFormat::Q4_1: each_block<BlockFormat::Q4_1>(x, in, dst, quantize_q4_1); break;
    case BlockFormat::Q8_0: each_block<BlockFormat::Q8_0>(x, in, dst, quantize_q8_0); break;
    case BlockFormat::NF4: each_block<BlockFormat::NF4>(x, in, dst, quantize_nf4); break;
    default: break;
  }
}

bool can_quantize(BlockFormat format) {
  switch (format) {
    case BlockFormat::F32:
    case BlockFormat::F16:
    case BlockFormat::BF16:
    case BlockFormat::Q4_0:
    case BlockFormat::Q4_1:
    case BlockFormat::Q8_0:
    case BlockFormat::NF4: return true;
    default: return false;
  }
}

}  // namespace

bool quantize_blocks(BlockFormat format, const float* src, int64_t src_stride, int64_t n_rows, int64_t in, void* dst) {
  if (!can_quantize(format)) return false;
  const int64_t row_bytes = in / block_layout(format).elements * block_layout(format).bytes;
  for (int64_t i = 0; i < n_rows; ++i) quantize_row(format, src + i * src_stride, in, static_cast<uint8_t*>(dst) + i * row_bytes);
  return true;
}

}  // namespace graft::GRAFT_ISA
