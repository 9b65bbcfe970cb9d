// RMSNorm after a residual addition: s = x + delta, y = s / rms(s) * w; rows [n, c] are contiguous. As kernels/norm.cc computes it.
#include "numbers.cuh"

// One block a row. sum is written where there is a delta; what is normed is what was stored.
template <class X, class W, int N>
__global__ void rms_forward(const X* x, const X* delta, const W* weight, float eps, Int c, X* sum, X* y, float* inverse_rms) {
  const Int row = blockIdx.x * c;
  float squares = 0;
  for (Int i = threadIdx.x * N; i < c; i += blockDim.x * N) {
    Pack<X, N> s = load<N>(x + row + i);
    if (delta) {
      const Pack<X, N> more = load<N>(delta + row + i);
      for (int k = 0; k < N; k++) put(s.at[k], value(s.at[k]) + value(more.at[k]));
      store(sum + row + i, s);
    }
    for (int k = 0; k < N; k++) squares += value(s.at[k]) * value(s.at[k]);
  }
  const float r = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(c) + eps);
  if (threadIdx.x == 0) inverse_rms[blockIdx.x] = r;
  const X* from = delta ? sum : x;  // each thread reads what it wrote itself
  for (Int i = threadIdx.x * N; i < c; i += blockDim.x * N) {
    const Pack<X, N> s = load<N>(from + row + i);
    const Pack<W, N> w = load<N>(weight + i);
    Pack<X, N> out;
    for (int k = 0; k < N; k++) put(out.at[k], value(s.at[k]) * r * value(w.at[k]));
    store(y + row + i, out);
  }
}

// dx = dsum + w dy r - s (sum of w dy s) r^3 / c, one block a row; dsum may be null.
template <class X, class W, int N>
__global__ void rms_backward(const X* s, const W* weight, const float* inverse_rms, const X* dy, const X* dsum, Int c, X* dx) {
  const Int row = blockIdx.x * c;
  float dot = 0;
  for (Int i = threadIdx.x * N; i < c; i += blockDim.x * N) {
    const Pack<X, N> s_at = load<N>(s + row + i), g = load<N>(dy + row + i);
    const Pack<W, N> w = load<N>(weight + i);
    for (int k = 0; k < N; k++) dot += value(g.at[k]) * value(w.at[k]) * value(s_at.at[k]);
  }
  const float r = inverse_rms[blockIdx.x];
  const float factor = block_sum(dot) * r * r * r / static_cast<float>(c);
  for (Int i = threadIdx.x * N; i < c; i += blockDim.x * N) {
    const Pack<X, N> s_at = load<N>(s + row + i), g = load<N>(dy + row + i);
    const Pack<W, N> w = load<N>(weight + i);
    Pack<X, N> residual = {}, out;
    if (dsum) residual = load<N>(dsum + row + i);
    for (int k = 0; k < N; k++) {
      put(out.at[k], value(g.at[k]) * value(w.at[k]) * r - value(s_at.at[k]) * factor + (dsum ? value(residual.at[k]) : 0.0f));
    }
    store(dx + row + i, out);
  }
}

// parts[b, i] = sum of dy s r over the rows of part b, `rows` of them; one thread a column.
template <class X>
__global__ void rms_backward_weight(const X* s, const float* inverse_rms, const X* dy, Int n, Int c, Int rows, float* parts) {
  const Int i = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= c) return;
  const Int first = blockIdx.y * rows, end = first + rows < n ? first + rows : n;
  float sum = 0;
  for (Int row = first; row < end; row++) sum += value(s[row * c + i]) * inverse_rms[row] * value(dy[row * c + i]);
  parts[blockIdx.y * c + i] = sum;
}
