// What the quantisers share. Files whose names contain "quantize" are compiled without contraction to FMA (CMakeLists.txt).
#pragma once

#include "blocks_tables.h"
#include "blocks_unpack.h"

namespace graft::GRAFT_ISA {

GRAFT_INLINE void write_f16(uint8_t* p, float x) {
  const uint16_t bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &bits, sizeof bits);
}
GRAFT_INLINE float read_f16(const uint8_t* p) { return _cvtsh_ss(read<uint16_t>(p)); }
GRAFT_INLINE bool is_finite_f16(const uint8_t* p) { return (read<uint16_t>(p) & 0x7c00) != 0x7c00; }

// A truth value in each lane.
#ifdef __AVX512F__
using Mask = __mmask16;
GRAFT_INLINE Mask greater(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
GRAFT_INLINE Mask equal(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
GRAFT_INLINE Mask both(Mask a, Mask b) { return a & b; }
GRAFT_INLINE F select(Mask mask, F yes, F no) { return _mm512_mask_mov_ps(no.v, mask, yes.v); }
GRAFT_INLINE uint32_t bits_of(Mask mask) { return mask; }
GRAFT_INLINE F low_23_bits_from_middle(F x) {
  const __m512i low = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffff));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(0x400000)));
}
GRAFT_INLINE void store_whole(int32_t* p, F x) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x.v)); }
#else
using Mask = __m256;
GRAFT_INLINE Mask greater(F a, F b) { return _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ); }
GRAFT_INLINE Mask equal(F a, F b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
GRAFT_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
GRAFT_INLINE F select(Mask mask, F yes, F no) { return _mm256_blendv_ps(no.v, yes.v, mask); }
GRAFT_INLINE uint32_t bits_of(Mask mask) { return _mm256_movemask_ps(mask); }
GRAFT_INLINE F low_23_bits_from_middle(F x) {
  const __m256i low = _mm256_and_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x7fffff));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(0x400000)));
}
GRAFT_INLINE void store_whole(int32_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(x.v)); }
#endif

// Returns the lanes in which a code is not the one that is kept.
GRAFT_INLINE uint32_t changed(F code, F kept) { return bits_of(equal(code, kept)) ^ ((1u << F::W) - 1); }
GRAFT_INLINE F clamp(F x, float low, float high) { return max(F(low), min(F(high), x)); }

// Returns whether no number's magnitude has bits above `limit`: infinities and NaN are above all finite ones.
GRAFT_INLINE bool magnitudes_within(const float* x, int64_t n, uint32_t limit) {
  uint32_t largest = 0;
  for (int64_t j = 0; j < n; ++j) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + j, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return largest <= limit;
}

// Blocks of the K formats with eight scales whose sub-blocks fill the lanes of a vector.
constexpr int kLaneBlocks = F::W / 8;

// Quantise n <= kLaneBlocks blocks (Q6_K: one); return whether their fp16 scales are finite.
bool quantize_q4_k(const float* x, int n, uint8_t* dst, uint32_t* clipped);
bool quantize_q5_k(const float* x, int n, uint8_t* dst, uint32_t* clipped);
bool quantize_q6_k(const float* x, uint8_t* dst, uint32_t* clipped);

}  // namespace graft::GRAFT_ISA
