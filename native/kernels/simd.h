// A vector of floats, as wide as the instruction set for which the including file is compiled.
//
// A kernel file is compiled once per instruction set, with -DGRAFT_ISA=avx2 or -DGRAFT_ISA=avx512 and the matching -m flags. All of it is
// in namespace graft::GRAFT_ISA, so that the copies never share a symbol. For the same reason kernel files avoid templates and inline
// functions of the standard library: the linker keeps one copy of such a function, and that could be the copy with AVX-512 instructions.
//
// F has F::W floats. min and max return the second argument where either one is NaN (as the instructions do).
#pragma once

// g++ 12 warns about the "undefined" operand inside its own AVX-512 intrinsics (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#ifndef GRAFT_ISA
#error "compile kernel files with -DGRAFT_ISA=avx2 or -DGRAFT_ISA=avx512"
#endif

namespace graft::GRAFT_ISA {

#if defined(__AVX512F__)

struct F {
  static constexpr int W = 16;
  __m512 v;
  F() = default;
  F(__m512 x) : v(x) {}
  explicit F(float x) : v(_mm512_set1_ps(x)) {}  // the same number in all lanes
};

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }

// Access to the first n lanes, 0 <= n <= W: the other lanes are read as 0 and not written; their memory is not touched.
inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
// x in lanes [0, n), y in the rest.
inline F first_n(F x, F y, int n) { return _mm512_mask_mov_ps(y.v, first_lanes(n), x.v); }

// W narrow numbers, converted to floats: signed and unsigned bytes, IEEE half, bfloat16 (the last two as raw bits).
inline F load_i8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
inline F load_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
inline F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline F operator+(F a, F b) { return _mm512_add_ps(a.v, b.v); }
inline F operator-(F a, F b) { return _mm512_sub_ps(a.v, b.v); }
inline F operator*(F a, F b) { return _mm512_mul_ps(a.v, b.v); }
inline F operator/(F a, F b) { return _mm512_div_ps(a.v, b.v); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }    // a b + c
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }  // c - a b
inline F max(F a, F b) { return _mm512_max_ps(a.v, b.v); }
inline F min(F a, F b) { return _mm512_min_ps(a.v, b.v); }
inline F sqrt(F x) { return _mm512_sqrt_ps(x.v); }
inline F abs(F x) { return _mm512_abs_ps(x.v); }
inline F round(F x) { return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }  // to nearest, ties to even
inline F zero_where_less(F x, F bound, F y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, bound.v, _CMP_NLT_UQ), y.v); }

inline __m256 low_half(F x) { return _mm512_castps512_ps256(x.v); }
inline __m256 high_half(F x) { return _mm512_extractf32x8_ps(x.v, 1); }
inline __m256 fold_sum(F x) { return _mm256_add_ps(low_half(x), high_half(x)); }
inline __m256 fold_max(F x) { return _mm256_max_ps(low_half(x), high_half(x)); }

// p 2^n for whole n, rounded once; the results include denormals, 0 and infinity.
inline F scale_by_power(F p, F n) { return _mm512_scalef_ps(p.v, n.v); }
// x = mantissa 2^exponent with the mantissa between the square roots of 1/2 and 2, for positive normal x: subtracting the bits of
// sqrt(1/2) makes the exponent field count from there.
inline void split(F x, F& mantissa, F& exponent) {
  const __m512i bits = _mm512_castps_si512(x.v), whole = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
  exponent = _mm512_cvtepi32_ps(whole);
  mantissa = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(whole, 23)));
}
// 2^n from t = n + 127 + 1.5 2^23: the low bits of t are then the exponent field of 2^n. For -126 <= n <= 127.
inline F power_from_bits(F t) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t.v), 23)); }

#else

struct F {
  static constexpr int W = 8;
  __m256 v;
  F() = default;
  F(__m256 x) : v(x) {}
  explicit F(float x) : v(_mm256_set1_ps(x)) {}
};

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.v); }

inline __m256i first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
inline F load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x.v); }
inline F first_n(F x, F y, int n) { return _mm256_blendv_ps(y.v, x.v, _mm256_castsi256_ps(first_lanes(n))); }

inline F load_i8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
inline F load_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
inline F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

inline F operator+(F a, F b) { return _mm256_add_ps(a.v, b.v); }
inline F operator-(F a, F b) { return _mm256_sub_ps(a.v, b.v); }
inline F operator*(F a, F b) { return _mm256_mul_ps(a.v, b.v); }
inline F operator/(F a, F b) { return _mm256_div_ps(a.v, b.v); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
inline F max(F a, F b) { return _mm256_max_ps(a.v, b.v); }
inline F min(F a, F b) { return _mm256_min_ps(a.v, b.v); }
inline F sqrt(F x) { return _mm256_sqrt_ps(x.v); }
inline F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v); }
inline F round(F x) { return _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F zero_where_less(F x, F bound, F y) { return _mm256_and_ps(_mm256_cmp_ps(x.v, bound.v, _CMP_NLT_UQ), y.v); }

inline __m256 fold_sum(F x) { return x.v; }
inline __m256 fold_max(F x) { return x.v; }

inline F power_from_bits(F t) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t.v), 23)); }
inline F scale_by_power(F p, F n) {  // in two steps: one float cannot represent all of 2^-149 to 2^128
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(p.v, a), b);
}
inline void split(F x, F& mantissa, F& exponent) {
  const __m256i bits = _mm256_castps_si256(x.v), whole = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
  exponent = _mm256_cvtepi32_ps(whole);
  mantissa = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(whole, 23)));
}

#endif

inline F zero() { return F(0.0f); }
inline F operator-(F x) { return zero() - x; }
inline F& operator+=(F& a, F b) { return a = a + b; }
inline F& operator*=(F& a, F b) { return a = a * b; }

inline float hsum(F x) {
  const __m256 eight = fold_sum(x);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline float hmax(F x) {
  const __m256 eight = fold_max(x);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// Four horizontal sums or maxima at once, which is cheaper than one after the other.
inline __m128 hsum4(F a, F b, F c, F d) {
  const __m256 ab = _mm256_hadd_ps(fold_sum(a), fold_sum(b));
  const __m256 abcd = _mm256_hadd_ps(ab, _mm256_hadd_ps(fold_sum(c), fold_sum(d)));
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}
inline __m256 max_of_neighbours(__m256 a, __m256 b) { return _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)); }
inline __m128 hmax4(F a, F b, F c, F d) {
  const __m256 ab = max_of_neighbours(fold_max(a), fold_max(b)), cd = max_of_neighbours(fold_max(c), fold_max(d));
  const __m256 abcd = max_of_neighbours(ab, cd);
  return _mm_max_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

// e^x to about 1 ulp for every float: 0 for -infinity, denormals kept, infinity from 88.73 on, NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 split in two, after Cody and Waite); e^r by a polynomial of degree 6 with minimal
// relative error (2e-9) on that interval, found by iterated reweighting with p(0) = 1 fixed.
inline F exp(F x) {
  x = min(F(89.0f), max(F(-104.0f), x));
  const F n = round(x * F(1.44269504f));
  F r = fnma(n, F(0.693359375f), x);
  r = fnma(n, F(-2.12194440e-4f), r);
  F p = fma(F(0.00138436467f), r, F(0.00837416109f));
  p = fma(p, r, F(0.0416680016f));
  p = fma(p, r, F(0.166664317f));
  p = fma(p, r, F(0.49999994f));
  p = fma(p, r, F(1.0f));
  p = fma(p, r, F(1.0f));
  return scale_by_power(p, n);
}

// 2^x to about 1 ulp for x < 127.5; results below the smallest normal float (x < -126) are exactly 0, so that softmax never
// computes with slow denormals. NaN stays NaN; +infinity becomes NaN. Cheaper than exp.
inline F exp2_flushed(F x) {
  const F to_bits(12582912.0f + 127.0f);  // 1.5 2^23 rounds to a whole number in the low bits; 127 is the exponent's bias
  const F t = x + to_bits;
  const F r = x - (t - to_bits);
  F p = fma(F(0.00015353362f), r, F(0.0013398875f));
  p = fma(p, r, F(0.00961843692f));
  p = fma(p, r, F(0.0555033237f));
  p = fma(p, r, F(0.240226477f));
  p = fma(p, r, F(0.693147182f));
  p = fma(p, r, F(1.0f));
  return zero_where_less(x, F(-126.0f), p * power_from_bits(t));
}

// Natural logarithm to about 2 ulp, for positive normal x. With s = (m - 1) / (m + 1), log m = 2 s (1 + s^2 / 3 + s^4 / 5 + ...).
inline F log(F x) {
  F m, n;
  split(x, m, n);
  const F s = (m - F(1.0f)) / (m + F(1.0f)), t = s * s;
  F p = fma(F(1.0f / 9), t, F(1.0f / 7));
  p = fma(p, t, F(1.0f / 5));
  p = fma(p, t, F(1.0f / 3));
  const F twice = s + s;
  const F small = fma(twice * t, p, n * F(-2.12194440e-4f));
  return fma(n, F(0.693359375f), twice + small);
}

// 1 / (1 + e^-x), 0 and 1 at the infinities.
inline F sigmoid(F x) { return F(1.0f) / (F(1.0f) + exp(-x)); }

}  // namespace graft::GRAFT_ISA
