// Unpacks blocks of quantised weights, bit for bit as kernels/blocks_dequant.cc: products with scales are exact in float32, so it does not
// matter whether a sum is fused with them. Layouts: kernels/blocks.h; formulas: dequantize_row_* of ggml-quants.c. A format has
//   elements, bytes   of one block
//   Format(block, j)  reads what the elements j to j + 7 share
//   operator()(block, j)  the element j
#include "numbers.cuh"

typedef unsigned char Byte;

__device__ inline float half_at(const Byte* p) { return value(Half{static_cast<unsigned short>(p[0] | p[1] << 8)}); }
__device__ inline float float_at(const Byte* p) {
  return __uint_as_float(p[0] | static_cast<unsigned>(p[1]) << 8 | static_cast<unsigned>(p[2]) << 16 | static_cast<unsigned>(p[3]) << 24);
}
__device__ inline int signed_byte(Byte x) { return static_cast<signed char>(x); }
// Of 32 elements: element j in the low nibble of byte j, j + 16 in the high one.
__device__ inline int nibble_of(const Byte* codes, int j) { return j < 16 ? codes[j] & 15 : codes[j - 16] >> 4; }
__device__ inline int bit_of(const Byte* bits, int j) { return bits[j / 8] >> j % 8 & 1; }

struct Q4_0 {
  static constexpr int elements = 32, bytes = 18;
  float d;
  __device__ Q4_0(const Byte* p, int) : d(half_at(p)) {}
  __device__ float operator()(const Byte* p, int j) const { return static_cast<float>(nibble_of(p + 2, j) - 8) * d; }
};

struct Q4_1 {
  static constexpr int elements = 32, bytes = 20;
  float d, m;
  __device__ Q4_1(const Byte* p, int) : d(half_at(p)), m(half_at(p + 2)) {}
  __device__ float operator()(const Byte* p, int j) const { return static_cast<float>(nibble_of(p + 4, j)) * d + m; }
};

struct Q5_0 {
  static constexpr int elements = 32, bytes = 22;
  float d;
  __device__ Q5_0(const Byte* p, int) : d(half_at(p)) {}
  __device__ float operator()(const Byte* p, int j) const {
    return static_cast<float>((nibble_of(p + 6, j) | bit_of(p + 2, j) << 4) - 16) * d;
  }
};

struct Q5_1 {
  static constexpr int elements = 32, bytes = 24;
  float d, m;
  __device__ Q5_1(const Byte* p, int) : d(half_at(p)), m(half_at(p + 2)) {}
  __device__ float operator()(const Byte* p, int j) const { return static_cast<float>(nibble_of(p + 8, j) | bit_of(p + 4, j) << 4) * d + m; }
};

struct Q8_0 {
  static constexpr int elements = 32, bytes = 34;
  float d;
  __device__ Q8_0(const Byte* p, int) : d(half_at(p)) {}
  __device__ float operator()(const Byte* p, int j) const { return static_cast<float>(signed_byte(p[2 + j])) * d; }
};

// The scale and the offset of one of eight sub-blocks of 32: six bits each in 12 bytes, times d and -dmin.
struct KScales {
  float scale, offset;
  __device__ KScales(const Byte* p, int j) {
    const Byte* packed = p + 4;
    const int s = j / 32, late = s - 4;
    const int scale_code = s < 4 ? packed[s] & 63 : (packed[8 + late] & 15) | packed[late] >> 6 << 4;
    const int min_code = s < 4 ? packed[4 + s] & 63 : packed[8 + late] >> 4 | packed[4 + late] >> 6 << 4;
    scale = half_at(p) * static_cast<float>(scale_code);
    offset = -(half_at(p + 2) * static_cast<float>(min_code));
  }
  // 32 bytes have the nibbles of two sub-blocks.
  __device__ static int nibble(const Byte* codes, int j) { return codes[j / 64 * 32 + j % 32] >> (j / 32 % 2 * 4) & 15; }
};

struct Q4_K : KScales {
  static constexpr int elements = 256, bytes = 144;
  __device__ Q4_K(const Byte* p, int j) : KScales(p, j) {}
  __device__ float operator()(const Byte* p, int j) const { return static_cast<float>(nibble(p + 16, j)) * scale + offset; }
};

struct Q5_K : KScales {
  static constexpr int elements = 256, bytes = 176;
  __device__ Q5_K(const Byte* p, int j) : KScales(p, j) {}
  __device__ float operator()(const Byte* p, int j) const {
    return static_cast<float>(nibble(p + 48, j) | (p[16 + j % 32] >> j / 32 & 1) << 4) * scale + offset;
  }
};

struct Q6_K {
  static constexpr int elements = 256, bytes = 210;
  float scale;
  __device__ Q6_K(const Byte* p, int j) : scale(static_cast<float>(signed_byte(p[192 + j / 16])) * half_at(p + 208)) {}
  __device__ float operator()(const Byte* p, int j) const {
    const int half = j / 128, i = j % 128;
    const int low = p[64 * half + i % 64] >> (i / 64 * 4) & 15, high = p[128 + 32 * half + i % 32] >> (i / 32 * 2) & 3;
    return static_cast<float>((low | high << 4) - 32) * scale;
  }
};

// The codebook of NF4 (QLoRA, appendix E), with the digits of bitsandbytes.
__constant__ float nf4_values[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

struct NF4 {
  static constexpr int elements = 64, bytes = 36;
  float absmax;
  __device__ NF4(const Byte* p, int) : absmax(float_at(p)) {}
  __device__ float operator()(const Byte* p, int j) const { return nf4_values[p[4 + j / 2] >> (j % 2 ? 0 : 4) & 15] * absmax; }
};

// A scale, a zero point, and the codes: whole bytes, nibbles, or bit k of every code in plane k; below eight bits counted from the lowest code.
template <int Bits>
struct Integer {
  static constexpr int elements = 32, bytes = 5 + 4 * Bits;
  float scale;
  int zero;
  __device__ Integer(const Byte* p, int) : scale(float_at(p)), zero(signed_byte(p[4]) + (Bits == 8 ? 0 : 1 << (Bits - 1))) {}
  __device__ float operator()(const Byte* p, int j) const {
    int code = 0;
    if (Bits == 8) {
      code = signed_byte(p[5 + j]);
    } else if (Bits == 4) {
      code = nibble_of(p + 5, j);
    } else {
      for (int k = 0; k < Bits; k++) code |= bit_of(p + 5 + 4 * k, j) << k;
    }
    return static_cast<float>(code - zero) * scale;
  }
};

// Eight elements a thread, of rows one after the other: `eights` in all.
template <class Format, class T>
__global__ void dequantize(const Byte* blocks, Int eights, T* to) {
  const Int i = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= eights) return;
  constexpr int kEights = Format::elements / 8;
  const Byte* block = blocks + i / kEights * Format::bytes;
  const int first = static_cast<int>(i % kEights) * 8;
  const Format format(block, first);
  Pack<T, 8> out;
  for (int k = 0; k < 8; k++) put(out.at[k], format(block, first + k));
  store(to + i * 8, out);
}
