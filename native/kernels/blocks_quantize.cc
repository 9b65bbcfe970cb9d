// Quantises fp32 rows to blocks, as ggml's reference functions quantize_row_*_ref do (same rounding, bit for bit), and to NF4. The
// K formats are in blocks_quantize_k.cc.
#include "blocks_quantize.h"

namespace graft::GRAFT_ISA {
namespace {

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

GRAFT_INLINE float inverse_or_zero(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

template <int n> GRAFT_INLINE float largest_magnitude(const float* x) {
  F largest = zero();
  for (int j = 0; j < n; j += F::W) largest = max(abs(load(x + j)), largest);
  return hmax(largest);
}

// d = largest magnitude / 127; code = x / d rounded, halves away from zero.
GRAFT_INLINE bool quantize_q8_0(const float* x, uint8_t* block, uint32_t* clipped) {
  const float d = largest_magnitude<32>(x) / 127.0f;
  const F inverse(inverse_or_zero(d));
  alignas(64) int32_t codes[32];
  // The largest float below one half: with one half itself, 0.49999997 would round up to 1.
  for (int j = 0; j < 32; j += F::W) {
    const F scaled = load(x + j) * inverse;
    store_truncated(codes + j, scaled + with_sign_of(F(0x1.fffffep-2f), scaled));
  }
  write_f16(block, d);
  for (int j = 0; j < 32; ++j) block[2 + j] = static_cast<uint8_t>(codes[j]);
  *clipped = 0;
  return is_finite_f16(block);
}

// Codes of `bits` bits from x * inverse + offset, rounded by truncation: their low nibbles, their fifth bits, and which of them were beyond
// the largest code and became it.
template <int bits> struct Codes32 {
  alignas(64) int32_t codes[32];
  uint32_t fifth = 0, clipped = 0;

  GRAFT_INLINE Codes32(const float* x, float minimum, float inverse, float offset) {
    constexpr int32_t largest = (1 << bits) - 1;
    for (int j = 0; j < 32; j += F::W) store_truncated(codes + j, (load(x + j) - F(minimum)) * F(inverse) + F(offset));
    for (int j = 0; j < 32; ++j) {
      const bool beyond = codes[j] > largest;
      clipped |= static_cast<uint32_t>(beyond) << j;
      codes[j] = beyond ? largest : codes[j];
      fifth |= static_cast<uint32_t>(codes[j] >> 4 & 1) << j;
    }
  }
  GRAFT_INLINE void write_nibbles(uint8_t* p) const {
    for (int j = 0; j < 16; ++j) p[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
  }
};

// Q4_0, Q5_0: d = the number of largest magnitude (the first of several) / -2^(bits - 1); code = x / d + 2^(bits - 1) rounded.
template <int bits> GRAFT_INLINE bool quantize_symmetric(const float* x, uint8_t* block, uint32_t* clipped) {
  constexpr float half = 1 << (bits - 1);
  const float magnitude = largest_magnitude<32>(x);
  uint32_t largest = 0;
  for (int j = 0; j < 32; j += F::W) largest |= bits_of(equal(abs(load(x + j)), F(magnitude))) << j;
  const float d = (magnitude == 0.0f ? 0.0f : x[__builtin_ctz(largest)]) / -half;
  const Codes32<bits> codes(x, 0.0f, inverse_or_zero(d), half + 0.5f);
  write_f16(block, d);
  if constexpr (bits == 5) __builtin_memcpy(block + 2, &codes.fifth, 4);
  codes.write_nibbles(block + (bits == 5 ? 6 : 2));
  *clipped = codes.clipped;
  return is_finite_f16(block);
}

// Q4_1, Q5_1: m = minimum, d = range / (2^bits - 1); code = (x - m) / d rounded. It never is beyond the range.
template <int bits> GRAFT_INLINE bool quantize_affine(const float* x, uint8_t* block, uint32_t* clipped) {
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
  const float d = (hmax(largest) - m + 0.0f) / static_cast<float>((1 << bits) - 1);  // of zeros: +0, whatever their signs
  const Codes32<bits> codes(x, m, inverse_or_zero(d), 0.5f);
  write_f16(block, d);
  write_f16(block + 2, m);
  if constexpr (bits == 5) __builtin_memcpy(block + 4, &codes.fifth, 4);
  codes.write_nibbles(block + (bits == 5 ? 8 : 4));
  *clipped = 0;
  return is_finite_f16(block) && is_finite_f16(block + 2);
}

struct Nf4Midpoints {
  float of[15];
  constexpr Nf4Midpoints() : of{} {
    for (int i = 0; i < 15; ++i) of[i] = (kNf4Values[i] + kNf4Values[i + 1]) / 2;
  }
};
constexpr Nf4Midpoints kNf4Midpoints;

// absmax, then the code nearest to x / absmax; exactly between two codes, the lower one (dQuantizeNF4 of bitsandbytes).
GRAFT_INLINE bool quantize_nf4(const float* x, uint8_t* block, uint32_t* clipped) {
  const float absmax = largest_magnitude<64>(x);
  const F inverse(inverse_or_zero(absmax));
  alignas(64) int32_t codes[64];
  for (int j = 0; j < 64; j += F::W) store_exceeded(codes + j, load(x + j) * inverse, kNf4Midpoints.of);
  __builtin_memcpy(block, &absmax, sizeof absmax);
  for (int j = 0; j < 32; ++j) block[4 + j] = static_cast<uint8_t>(codes[2 * j] << 4 | codes[2 * j + 1]);
  clipped[0] = clipped[1] = 0;
  return true;
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

// The largest magnitude of a number, as its bits: any finite one for NF4's fp32 scale. 1e9 is beyond what any fp16 scale can represent, and
// not so large that the search for the scales of the K formats, which squares numbers, overflows before its scale does.
template <BlockFormat format> constexpr uint32_t kLargest = format == BlockFormat::NF4 ? 0x7f7fffff : 0x4e6e6b28;

// Quantises n <= blocks_at_once<format> blocks; returns whether all of them can be. `clipped` has a bit for each element.
template <BlockFormat format> constexpr int blocks_at_once = format == BlockFormat::Q4_K || format == BlockFormat::Q5_K ? kLaneBlocks : 1;
template <BlockFormat format> GRAFT_INLINE bool quantize_some(const float* x, int n, uint8_t* dst, uint32_t* clipped) {
  if (!magnitudes_within(x, n * block_layout(format).elements, kLargest<format>)) return false;
  if constexpr (format == BlockFormat::Q4_0) return quantize_symmetric<4>(x, dst, clipped);
  if constexpr (format == BlockFormat::Q5_0) return quantize_symmetric<5>(x, dst, clipped);
  if constexpr (format == BlockFormat::Q4_1) return quantize_affine<4>(x, dst, clipped);
  if constexpr (format == BlockFormat::Q5_1) return quantize_affine<5>(x, dst, clipped);
  if constexpr (format == BlockFormat::Q8_0) return quantize_q8_0(x, dst, clipped);
  if constexpr (format == BlockFormat::NF4) return quantize_nf4(x, dst, clipped);
  if constexpr (format == BlockFormat::Q4_K) return quantize_q4_k(x, n, dst, clipped);
  if constexpr (format == BlockFormat::Q5_K) return quantize_q5_k(x, n, dst, clipped);
  if constexpr (format == BlockFormat::Q6_K) return quantize_q6_k(x, dst, clipped);
}

// Calls each(first element, blocks, their number, the words of `clipped`) for all blocks of a row; returns whether all can be quantised.
template <BlockFormat format, class Each> GRAFT_INLINE bool each_block(const float* x, int64_t in, Each&& each) {
  constexpr BlockLayout layout = block_layout(format);
  constexpr int at_once = blocks_at_once<format>;
  uint8_t blocks[at_once * layout.bytes];
  uint32_t clipped[at_once * layout.elements / 32];
  for (int64_t j = 0; j < in; j += at_once * layout.elements) {
    const int64_t left = (in - j) / layout.elements;
    const int n = left < at_once ? static_cast<int>(left) : at_once;
    if (!quantize_some<format>(x + j, n, blocks, clipped)) return false;
    each(j, blocks, n, clipped);
  }
  return true;
}

template <BlockFormat format> bool quantize_row(const float* x, int64_t in, uint8_t* dst) {
  constexpr BlockLayout layout = block_layout(format);
  return each_block<format>(x, in, [&](int64_t j, const uint8_t* blocks, int n, const uint32_t*) __attribute__((always_inline)) {
    __builtin_memcpy(dst + j / layout.elements * layout.bytes, blocks, n * layout.bytes);
  });
}

template <BlockFormat format> bool fake_quantize_row(const float* x, int64_t in, float* dst, uint32_t* clipped) {
  constexpr BlockLayout layout = block_layout(format);
  return each_block<format>(x, in, [&](int64_t j, const uint8_t* blocks, int n, const uint32_t* bits) __attribute__((always_inline)) {
    for (int b = 0; b < n; ++b) {
      float* to = dst + j + b * layout.elements;
      unpack_block<format>(blocks + b * layout.bytes, [&](int i, F w) __attribute__((always_inline)) { store(to + i, w); });
    }
    if (clipped) __builtin_memcpy(clipped + j / 32, bits, n * layout.elements / 8);
  });
}

// Calls call(FormatTag<format>) for the formats in blocks that are quantised here; returns false for others.
template <class Call> GRAFT_INLINE bool with_quantised(BlockFormat format, Call&& call) {
  switch (format) {
#define GRAFT_FORMAT(name) \
  case BlockFormat::name: return call(FormatTag<BlockFormat::name>{})
    GRAFT_FORMAT(Q4_0);
    GRAFT_FORMAT(Q4_1);
    GRAFT_FORMAT(Q5_0);
    GRAFT_FORMAT(Q5_1);
    GRAFT_FORMAT(Q8_0);
    GRAFT_FORMAT(Q4_K);
    GRAFT_FORMAT(Q5_K);
    GRAFT_FORMAT(Q6_K);
    GRAFT_FORMAT(NF4);
#undef GRAFT_FORMAT
    default: return false;
  }
}

}  // namespace

int64_t quantize_blocks(BlockFormat format, const float* src, int64_t src_stride, int64_t n_rows, int64_t in, void* dst) {
  const int64_t row_bytes = in / block_layout(format).elements * block_layout(format).bytes;
  for (int64_t i = 0; i < n_rows; ++i) {
    const float* x = src + i * src_stride;
    uint8_t* to = static_cast<uint8_t*>(dst) + i * row_bytes;
    switch (format) {
      case BlockFormat::F32: __builtin_memcpy(to, x, in * sizeof(float)); break;
      case BlockFormat::F16: narrow(x, in, to, store_f16); break;
      case BlockFormat::BF16: narrow(x, in, to, store_bf16); break;
      default:
        if (!with_quantised(format, [&](auto tag) { return quantize_row<decltype(tag)::value>(x, in, to); })) return i;
    }
  }
  return n_rows;
}

int64_t fake_quantize_blocks(BlockFormat format, const float* src, int64_t n_rows, int64_t in, float* dst, uint32_t* clipped) {
  for (int64_t i = 0; i < n_rows; ++i) {
    uint32_t* bits = clipped ? clipped + i * clipped_words(in) : nullptr;
    if (!with_quantised(format, [&](auto tag) { return fake_quantize_row<decltype(tag)::value>(src + i * in, in, dst + i * in, bits); }))
      return i;
  }
  return n_rows;
}

}  // namespace graft::GRAFT_ISA
