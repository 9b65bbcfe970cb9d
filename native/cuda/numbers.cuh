// Types of numbers and sums over a block. NVRTC has no headers of its own, so 16-bit numbers are converted here.
#pragma once

typedef long long Int;

struct Bfloat16 {
  unsigned short bits;
};
struct Half {
  unsigned short bits;
};

__device__ inline float value(float x) { return x; }
__device__ inline float value(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ inline float value(Half x) {
  // 2^112 moves the exponent's bias, of numbers below the normal ones too; infinities and NaN have the largest exponent.
  unsigned bits = (x.bits & 0x7fffu) << 13;
  bits = bits >= 0x0f800000u ? bits | 0x7f800000u : __float_as_uint(__uint_as_float(bits) * __uint_as_float(0x77800000u));
  return __uint_as_float(bits | (x.bits & 0x8000u) << 16);
}

__device__ inline void put(float& to, float x) { to = x; }
// To nearest, ties to even; a NaN becomes a quiet NaN.
__device__ inline void put(Bfloat16& to, float x) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
  to.bits = static_cast<unsigned short>(rounded >> 16);
}

// N numbers that are read or written at once.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};
template <int N, class T>
__device__ inline Pack<T, N> load(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, class T>
__device__ inline void store(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

// The same over all threads of a block, whose number is a multiple of 32: every thread has the result.
template <class Reduce>
__device__ inline float over_block(float x, float neutral, Reduce reduce) {
  __shared__ float parts[32];
  x = reduce(x);
  __syncthreads();  // the parts of an earlier call have been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  return reduce(threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : neutral);
}
__device__ inline float block_sum(float x) {
  return over_block(x, 0.0f, [](float y) { return warp_sum(y); });
}
__device__ inline float block_max(float x) {
  return over_block(x, __uint_as_float(0xff800000u), [](float y) { return warp_max(y); });
}
