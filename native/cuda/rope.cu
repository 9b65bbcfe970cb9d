// Rotary position embedding: pairs (i, i + half) of each head are rotated, elements from 2 half on are copied. As kernels/rope.cc.
#include "numbers.cuh"

// One block a token: x [n, heads, d] whose tokens are x_stride apart, cos and sin [n, half], y contiguous. sign -1: rotates back.
template <class X, class C, class Y>
__global__ void rotate(const X* x, Int x_stride, const C* cos, const C* sin, float sign, int heads, int d, int half, Y* y) {
  const Int token = blockIdx.x;
  const X* from = x + token * x_stride;
  Y* to = y + token * heads * d;
  for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
    const int pair = i % half, at = i / half * d + pair;
    const float c = value(cos[token * half + pair]), s = sign * value(sin[token * half + pair]);
    const float a = value(from[at]), b = value(from[at + half]);
    put(to[at], a * c - b * s);
    put(to[at + half], b * c + a * s);
  }
  const int rest = d - 2 * half;
  for (int i = threadIdx.x; i < heads * rest; i += blockDim.x) {
    const int at = i / rest * d + 2 * half + i % rest;
    put(to[at], value(from[at]));
  }
}
