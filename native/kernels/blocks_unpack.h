// The unpackers of block formats, one for each format. Unpacker<format> has
//   elements, bytes  of one block
//   parts            the number of calls of part() that unpack a block
//   State            the data that the parts share, read from the block by prepare()
//   part(state, block, s, sink)  calls sink(j, w) once for each F::W weights of part s, w = weights j … j + F::W - 1 as fp32
// Long blocks are unpacked in parts, so that a caller can alternate between rows: the additions to the sum of one row depend on one another.
// Every product with a scale is exact in fp32 (11 bits of an fp16 scale, at most 7 of a sub-scale, at most 6 of a code), so an FMA rounds
// where the formula does.
// Layouts: ggml's ggml-common.h; formulas: dequantize_row_* of ggml-quants.c.
#pragma once

#include "blocks_codes.h"

namespace graft::GRAFT_ISA {

template <BlockFormat> struct Unpacker;

struct OnePart {
  static constexpr int parts = 1;
  struct State {
    GRAFT_INLINE void prepare(const uint8_t*) {}
  };
};

// Numbers without blocks are processed 32 at a time; the caller pads the rest of a row.
template <> struct Unpacker<BlockFormat::F32> : OnePart {
  static constexpr int elements = 32, bytes = 128;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
#pragma GCC unroll 4
    for (int j = 0; j < 32; j += F::W) sink(j, load(reinterpret_cast<const float*>(p) + j));
  }
};

template <> struct Unpacker<BlockFormat::F16> : OnePart {
  static constexpr int elements = 32, bytes = 64;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
#pragma GCC unroll 4
    for (int j = 0; j < 32; j += F::W) sink(j, load_f16(reinterpret_cast<const uint16_t*>(p) + j));
  }
};

template <> struct Unpacker<BlockFormat::BF16> : OnePart {
  static constexpr int elements = 32, bytes = 64;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
#pragma GCC unroll 4
    for (int j = 0; j < 32; j += F::W) sink(j, load_bf16(reinterpret_cast<const uint16_t*>(p) + j));
  }
};

// fp16 d, 16 bytes of codes: d * (code - 8); element j in the low nibble of byte j, j + 16 in the high one
template <> struct Unpacker<BlockFormat::Q4_0> : OnePart {
  static constexpr int elements = 32, bytes = 18;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const F d = broadcast_f16(p);
#ifdef __AVX512F__
    const Affine4 values(d, 8.0f);
    unpack_nibbles<16>(p + 2, 0, values, values, sink);
#else
    // Affine4 with -8d would give code 8 another sign of zero than the formula. code ^ 8 is code - 8 in two's complement; the
    // high nibble is sign-extended by an arithmetic shift, the low one taken times 2^28.
    const F d_low = d * F(0x1p-28f);
#pragma GCC unroll 2
    for (int j = 0; j < 16; j += 8) {
      const __m256i bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 2 + j)));
      const __m256i codes = _mm256_xor_si256(bytes, _mm256_set1_epi32(~0x77));
      sink(j, F(_mm256_cvtepi32_ps(_mm256_slli_epi32(codes, 28))) * d_low);
      sink(j + 16, F(_mm256_cvtepi32_ps(_mm256_srai_epi32(codes, 4))) * d);
    }
#endif
  }
};

// fp16 d and m, codes as in Q4_0: d * code + m
template <> struct Unpacker<BlockFormat::Q4_1> : OnePart {
  static constexpr int elements = 32, bytes = 20;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const auto [d, m] = broadcast_f16_pair(p);
    const Affine4 values(d, m);
    unpack_nibbles<16>(p + 4, 0, values, values, sink);
  }
};

// fp16 d, 32 fifth bits, nibbles as in Q4_0: d * (code - 16)
template <> struct Unpacker<BlockFormat::Q5_0> : OnePart {
  static constexpr int elements = 32, bytes = 22;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const F d = broadcast_f16(p);
    const __m256i nibbles = split_nibbles(p + 6);
    const __m256i less_16 = _mm256_or_si256(nibbles, _mm256_set1_epi8(-16));
    unpack_bytes(select_bytes(read<uint32_t>(p + 2), nibbles, less_16), 0, [&](int, F code) { return code * d; }, sink);
  }
};

// fp16 d and m, then as in Q5_0: d * code + m
template <> struct Unpacker<BlockFormat::Q5_1> : OnePart {
  static constexpr int elements = 32, bytes = 24;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const auto [scale, offset] = broadcast_f16_pair(p);
    const F d = scale, m = offset;  // a lambda cannot capture structured bindings
    const __m256i nibbles = split_nibbles(p + 8);
    const __m256i plus_16 = _mm256_or_si256(nibbles, _mm256_set1_epi8(16));
    unpack_bytes(select_bytes(read<uint32_t>(p + 4), plus_16, nibbles), 0, [&](int, F code) { return fma(code, d, m); }, sink);
  }
};

// fp16 d, 32 int8 codes: d * code
template <> struct Unpacker<BlockFormat::Q8_0> : OnePart {
  static constexpr int elements = 32, bytes = 34;
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const F d = broadcast_f16(p);
#pragma GCC unroll 4
    for (int j = 0; j < 32; j += F::W) sink(j, load_i8(reinterpret_cast<const int8_t*>(p) + 2 + j) * d);
  }
};

// fp16 d and dmin, 12 bytes of scales, 128 bytes of codes: d * scale * code - dmin * min. 32 elements share a scale, 32 bytes hold two
// such sub-blocks, the first in the low nibbles.
template <> struct Unpacker<BlockFormat::Q4_K> {
  static constexpr int elements = 256, bytes = 144, parts = 4;
  using State = KScales;
  template <class Sink> static GRAFT_INLINE void part(const State& k, const uint8_t* p, int s, Sink&& sink) {
    const Affine4 low(F(k.scale[2 * s]), F(k.offset[2 * s])), high(F(k.scale[2 * s + 1]), F(k.offset[2 * s + 1]));
    unpack_nibbles<32>(p + 16 + 32 * s, 64 * s, low, high, sink);
  }
};

// as Q4_K, with 32 bytes of fifth bits before the nibbles: bit s of byte j belongs to element j of sub-block s
template <> struct Unpacker<BlockFormat::Q5_K> {
  static constexpr int elements = 256, bytes = 176, parts = 4;
  using State = KScales;
  template <class Sink> static GRAFT_INLINE void part(const State& k, const uint8_t* p, int s, Sink&& sink) {
    const __m256i fifth = _mm256_set1_epi8(16), nibble = _mm256_set1_epi8(15);
    const __m256i packed = load_32_bytes(p + 48 + 32 * s);
    const __m256i bits = _mm256_srl_epi16(load_32_bytes(p + 16), _mm_cvtsi32_si128(2 * s));  // the lowest two bits of each byte are used
    const __m256i low = _mm256_or_si256(_mm256_and_si256(packed, nibble), _mm256_and_si256(_mm256_slli_epi16(bits, 4), fifth));
    const __m256i high = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble),
                                         _mm256_and_si256(_mm256_slli_epi16(bits, 3), fifth));
    const F scale_low(k.scale[2 * s]), offset_low(k.offset[2 * s]), scale_high(k.scale[2 * s + 1]), offset_high(k.offset[2 * s + 1]);
    unpack_bytes(low, 64 * s, [&](int, F code) { return fma(code, scale_low, offset_low); }, sink);
    unpack_bytes(high, 64 * s + 32, [&](int, F code) { return fma(code, scale_high, offset_high); }, sink);
  }
};

// 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, fp16 d: d * scale * (code - 32), 16 elements to a scale. Each half of
// 128 elements has 64 and 32 bytes of them: the first 64 elements in the low nibbles and bit pairs 0 and 1, the others in the high
// nibbles and bit pairs 2 and 3.
template <> struct Unpacker<BlockFormat::Q6_K> {
  static constexpr int elements = 256, bytes = 210, parts = 4;
  struct State {
    alignas(64) float scale[16];
    GRAFT_INLINE void prepare(const uint8_t* p) {
      const F d = broadcast_lane_0(_mm_cvtph_ps(_mm_cvtsi32_si128(read<uint16_t>(p + 208))));  // it must not read beyond the block
      for (int i = 0; i < 16; i += F::W) store(scale + i, load_i8(reinterpret_cast<const int8_t*>(p) + 192 + i) * d);
    }
  };
  template <class Sink> static GRAFT_INLINE void part(const State& state, const uint8_t* p, int s, Sink&& sink) {
    const __m256i nibble = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(0x30), bias = _mm256_set1_epi8(32);
    const int half = s / 2;
    const __m128i nibble_shift = _mm_cvtsi32_si128(s % 2 * 4);
    const __m256i pairs = _mm256_srl_epi16(load_32_bytes(p + 128 + 32 * half), nibble_shift);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i low = _mm256_and_si256(_mm256_srl_epi16(load_32_bytes(p + 64 * half + 32 * i), nibble_shift), nibble);
      const __m256i high = _mm256_and_si256(i == 0 ? _mm256_slli_epi16(pairs, 4) : _mm256_slli_epi16(pairs, 2), pair);
      const __m256i codes = _mm256_sub_epi8(_mm256_or_si256(low, high), bias);
      const F first(state.scale[4 * s + 2 * i]), second(state.scale[4 * s + 2 * i + 1]);
      unpack_bytes(codes, 64 * s + 32 * i, [&](int j, F code) { return code * (j < 16 ? first : second); }, sink);
    }
  }
};

// The codebook of NF4: quantiles of the normal distribution (QLoRA, appendix E), with the digits of bitsandbytes.
alignas(64) constexpr float kNf4Values[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

#ifndef __AVX512F__
struct Nf4Planes {  // bytes[b][code]: byte b of the code's value
  alignas(16) uint8_t bytes[4][16];
  constexpr Nf4Planes() : bytes{} {
    for (int code = 0; code < 16; ++code)
      for (int b = 0; b < 4; ++b) bytes[b][code] = __builtin_bit_cast(uint32_t, kNf4Values[code]) >> (8 * b);
  }
};
constexpr Nf4Planes kNf4Planes;
#endif

// fp32 absmax, 32 bytes of codes: absmax * value of code; elements 2j and 2j + 1 in the high and the low nibble of byte j
template <> struct Unpacker<BlockFormat::NF4> : OnePart {
  static constexpr int elements = 64, bytes = 36;
#ifdef __AVX512F__
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const F values = load(kNf4Values) * F(read<float>(p));
    // Four bytes have eight codes: each lane loads its four bytes and shifts its code down.
    const __m512i codes = _mm512_castsi256_si512(load_32_bytes(p + 4));
    const __m512i shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    const __m512i lane_of = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i eights = _mm512_permutexvar_epi32(_mm512_add_epi32(lane_of, _mm512_set1_epi32(2 * i)), codes);
      sink(16 * i, F(_mm512_permutexvar_ps(_mm512_srlv_epi32(eights, shifts), values.v)));
    }
  }
#else
  // Byte shuffles look up the four bytes of each value, and interleaving joins them. Interleaving works within halves of 16 bytes, so the
  // codes are first arranged such that the results are in order.
  template <class Sink> static GRAFT_INLINE void part(const State&, const uint8_t* p, int, Sink&& sink) {
    const F absmax(read<float>(p));
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i planes[4];
    for (int b = 0; b < 4; ++b) planes[b] = _mm256_broadcastsi128_si256(load_16_bytes(kNf4Planes.bytes[b]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i pairs = _mm256_cvtepu8_epi16(_mm_shuffle_epi8(load_16_bytes(p + 4 + 16 * i), order));
      const __m256i codes =
          _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi16(pairs, 4), _mm256_slli_epi16(pairs, 8)), _mm256_set1_epi8(15));
      const __m256i b0 = _mm256_shuffle_epi8(planes[0], codes), b1 = _mm256_shuffle_epi8(planes[1], codes);
      const __m256i b2 = _mm256_shuffle_epi8(planes[2], codes), b3 = _mm256_shuffle_epi8(planes[3], codes);
      const __m256i b01[2] = {_mm256_unpacklo_epi8(b0, b1), _mm256_unpackhi_epi8(b0, b1)};
      const __m256i b23[2] = {_mm256_unpacklo_epi8(b2, b3), _mm256_unpackhi_epi8(b2, b3)};
      for (int h = 0; h < 2; ++h) {
        sink(32 * i + 16 * h, F(_mm256_castsi256_ps(_mm256_unpacklo_epi16(b01[h], b23[h]))) * absmax);
        sink(32 * i + 16 * h + 8, F(_mm256_castsi256_ps(_mm256_unpackhi_epi16(b01[h], b23[h]))) * absmax);
      }
    }
  }
#endif
};

// fp32 scale, int8 zero point, 32 codes of b bits without a sign: scale * (code - 2^(b - 1) - zero point). Codes of 4 bits are nibbles as in
// Q4_0, and those of 8 bits have a sign; of others the bits follow one another in 32-bit words, bit j of each for element j.
template <int b> struct IntegerUnpacker : OnePart {
  static constexpr int elements = 32, bytes = 5 + 4 * b;
  template <class Sink> static GRAFT_INLINE void part(const OnePart::State&, const uint8_t* p, int, Sink&& sink) {
    const F scale(read<float>(p)), zero_point(static_cast<float>(read<int8_t>(p + 4) + (b == 8 ? 0 : 1 << (b - 1))));
    __m256i codes;
    if constexpr (b == 8) {
      codes = load_32_bytes(p + 5);
    } else if constexpr (b == 4) {
      codes = split_nibbles(p + 5);
    } else {
      codes = _mm256_setzero_si256();
#pragma GCC unroll 7
      for (int k = 0; k < b; ++k) {
        const __m256i set = _mm256_or_si256(codes, _mm256_set1_epi8(static_cast<char>(1 << k)));
        codes = select_bytes(read<uint32_t>(p + 5 + 4 * k), set, codes);
      }
    }
    unpack_bytes(codes, 0, [&](int, F code) { return (code - zero_point) * scale; }, sink);
  }
};
template <> struct Unpacker<BlockFormat::INT2> : IntegerUnpacker<2> {};
template <> struct Unpacker<BlockFormat::INT3> : IntegerUnpacker<3> {};
template <> struct Unpacker<BlockFormat::INT4> : IntegerUnpacker<4> {};
template <> struct Unpacker<BlockFormat::INT5> : IntegerUnpacker<5> {};
template <> struct Unpacker<BlockFormat::INT6> : IntegerUnpacker<6> {};
template <> struct Unpacker<BlockFormat::INT7> : IntegerUnpacker<7> {};
template <> struct Unpacker<BlockFormat::INT8> : IntegerUnpacker<8> {};

template <BlockFormat format, class Sink> GRAFT_INLINE void unpack_block(const uint8_t* p, Sink&& sink) {
  using U = Unpacker<format>;
  typename U::State state;
  state.prepare(p);
#pragma GCC unroll 1
  for (int s = 0; s < U::parts; ++s) U::part(state, p, s, sink);
}

// ------------------------------------------------------------------------------------------------------------------------ dispatch

template <BlockFormat format> struct FormatTag {
  static constexpr BlockFormat value = format;
};

// Calls call(FormatTag<format>) for a format that is known at run time only.
template <class Call> GRAFT_INLINE void with_format(BlockFormat format, Call&& call) {
  switch (format) {
#define GRAFT_FORMAT(name) \
  case BlockFormat::name: return call(FormatTag<BlockFormat::name>{})
    GRAFT_FORMAT(F32);
    GRAFT_FORMAT(F16);
    GRAFT_FORMAT(BF16);
    GRAFT_FORMAT(Q4_0);
    GRAFT_FORMAT(Q4_1);
    GRAFT_FORMAT(Q5_0);
    GRAFT_FORMAT(Q5_1);
    GRAFT_FORMAT(Q8_0);
    GRAFT_FORMAT(Q4_K);
    GRAFT_FORMAT(Q5_K);
    GRAFT_FORMAT(Q6_K);
    GRAFT_FORMAT(NF4);
    GRAFT_FORMAT(INT2);
    GRAFT_FORMAT(INT3);
    GRAFT_FORMAT(INT4);
    GRAFT_FORMAT(INT5);
    GRAFT_FORMAT(INT6);
    GRAFT_FORMAT(INT7);
    GRAFT_FORMAT(INT8);
#undef GRAFT_FORMAT
  }
}

}  // namespace graft::GRAFT_ISA
