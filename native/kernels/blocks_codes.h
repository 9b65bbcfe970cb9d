// The elements of the block formats: fp16 scales, 4-bit and 8-bit codes, the packed scales of K-quants.
#pragma once

#include "blocks.h"
#include "simd.h"

#define GRAFT_INLINE __attribute__((always_inline)) inline

namespace graft::GRAFT_ISA {

template <class T> GRAFT_INLINE T read(const uint8_t* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

GRAFT_INLINE F broadcast_lane_0(__m128 x) {
#ifdef __AVX512F__
  return _mm512_broadcastss_ps(x);
#else
  return _mm256_broadcastss_ps(x);
#endif
}

// Returns the fp16 number at p in every lane. To convert first and broadcast then takes fewer and narrower instructions than the other way
// round; it reads four bytes.
GRAFT_INLINE F broadcast_f16(const uint8_t* p) { return broadcast_lane_0(_mm_cvtph_ps(_mm_cvtsi32_si128(read<int32_t>(p)))); }

struct F16Pair {
  F first, second;
};
// The same for the fp16 number at p and the one that follows it.
GRAFT_INLINE F16Pair broadcast_f16_pair(const uint8_t* p) {
  const __m128 pair = _mm_cvtph_ps(_mm_cvtsi32_si128(read<int32_t>(p)));
#ifdef __AVX512F__
  // The second number goes through memory, from which a load broadcasts it: the shuffle unit is the bottleneck here, with its look-ups.
  float second[2];
  _mm_storel_pi(reinterpret_cast<__m64*>(second), pair);
  __asm__("" : "+m"(second));  // or the compiler would use the register again
  return {broadcast_lane_0(pair), F(second[1])};
#else
  return {broadcast_lane_0(pair), broadcast_lane_0(_mm_movehdup_ps(pair))};
#endif
}

GRAFT_INLINE __m128i load_16_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
GRAFT_INLINE __m256i load_32_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Stores x rounded to the nearest bf16, ties to even; a NaN becomes a quiet NaN (ggml's rule).
GRAFT_INLINE void store_bf16(uint16_t* p, F x) {
#ifdef __AVX512F__
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
#else
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i result = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
#endif
}

// ------------------------------------------------------------------------------------------ 4-bit codes: scale * code + offset

// The values of the codes 0 … 15 of one scale. With AVX-512 one register has all 16 and a permutation looks them up; with AVX2, where a
// permutation reaches 8 values only, it is cheaper to convert the code and do one FMA.
#ifdef __AVX512F__
using Codes = __m512i;  // one code, or one byte with two codes, in each lane
GRAFT_INLINE Codes widen_codes(const uint8_t* p) { return _mm512_cvtepu8_epi32(load_16_bytes(p)); }

struct Affine4 {
  F table;
  GRAFT_INLINE Affine4(F scale, F offset) : table(fma(all_codes(), scale, offset)) {}
  GRAFT_INLINE Affine4(F scale, float zero) : table((all_codes() - F(zero)) * scale) {}
  static GRAFT_INLINE F all_codes() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  // The value of the low or high nibble in each lane; the permutation uses the low 4 bits of a lane only.
  GRAFT_INLINE F low(Codes bytes) const { return _mm512_permutexvar_ps(bytes, table.v); }
  GRAFT_INLINE F high(Codes bytes) const { return _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table.v); }
};
#else
using Codes = __m256i;
GRAFT_INLINE Codes widen_codes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

struct Affine4 {
  F scale, offset;
  GRAFT_INLINE Affine4(F s, F o) : scale(s), offset(o) {}
  GRAFT_INLINE F low(Codes bytes) const { return fma(_mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15))), scale, offset); }
  GRAFT_INLINE F high(Codes bytes) const { return fma(_mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4)), scale, offset); }
};
#endif

// Unpacks `bytes` bytes with the codes j … in their low nibbles and j + bytes … in their high nibbles.
template <int bytes, class Sink>
GRAFT_INLINE void unpack_nibbles(const uint8_t* p, int j, const Affine4& low, const Affine4& high, Sink&& sink) {
#pragma GCC unroll 4
  for (int i = 0; i < bytes; i += F::W) {
    const Codes codes = widen_codes(p + i);
    sink(j + i, low.low(codes));
    sink(j + bytes + i, high.high(codes));
  }
}

// ------------------------------------------------------------------------------------------------------- codes as 32 signed bytes

// Unpacks 16 bytes to 32: low nibbles in the lower half, high nibbles in the upper half.
GRAFT_INLINE __m256i split_nibbles(const uint8_t* p) {
  const __m128i packed = load_16_bytes(p);
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// Byte j of the result is that of `set` where bit j of `bits` is set, that of `clear` elsewhere.
GRAFT_INLINE __m256i select_bytes(uint32_t bits, __m256i set, __m256i clear) {
#ifdef __AVX512F__
  return _mm256_mask_blend_epi8(bits, clear, set);
#else
  const __m256i byte_of_bit = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i other_bits = _mm256_set1_epi64x(0x7fbfdfeff7fbfdfe);
  const __m256i spread = _mm256_or_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte_of_bit), other_bits);
  return _mm256_blendv_epi8(clear, set, _mm256_cmpeq_epi8(spread, _mm256_set1_epi8(-1)));
#endif
}

// Calls sink(j + i, value(i, codes i … as floats)).
template <class Value, class Sink> GRAFT_INLINE void unpack_bytes(__m256i codes, int j, Value&& value, Sink&& sink) {
  const __m128i lower = _mm256_castsi256_si128(codes), upper = _mm256_extracti128_si256(codes, 1);
#ifdef __AVX512F__
  sink(j, value(0, F(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(lower)))));
  sink(j + 16, value(16, F(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(upper)))));
#else
  sink(j, value(0, F(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(lower)))));
  sink(j + 8, value(8, F(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(lower, lower))))));
  sink(j + 16, value(16, F(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(upper)))));
  sink(j + 24, value(24, F(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(upper, upper))))));
#endif
}

// -------------------------------------------------------------------------------------------------------------- scales of K-quants

// Q4_K and Q5_K: eight 6-bit scales and minima in 12 bytes (ggml's get_scale_min_k4), times d and dmin.
struct KScales {
  alignas(64) float scale[8];
  float offset[8];  // -dmin * min
  GRAFT_INLINE void prepare(const uint8_t* block) {
    const uint32_t a = read<uint32_t>(block + 4), b = read<uint32_t>(block + 8), c = read<uint32_t>(block + 12);
    const uint32_t late_scales = (c & 0x0f0f0f0f) | ((a >> 2) & 0x30303030);
    const uint32_t late_mins = ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030);
    const __m128i codes = _mm_setr_epi32(a & 0x3f3f3f3f, late_scales, b & 0x3f3f3f3f, late_mins);
    const __m128 pair = _mm_cvtph_ps(_mm_cvtsi32_si128(read<int32_t>(block)));
    const __m256 d = _mm256_broadcastss_ps(pair), dmin = _mm256_broadcastss_ps(_mm_movehdup_ps(pair));
    const __m256 scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
    const __m256 mins = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(codes, codes)));
    _mm256_store_ps(scale, _mm256_mul_ps(d, scales));
    _mm256_store_ps(offset, _mm256_xor_ps(_mm256_mul_ps(dmin, mins), _mm256_set1_ps(-0.0f)));
  }
};

}  // namespace graft::GRAFT_ISA
