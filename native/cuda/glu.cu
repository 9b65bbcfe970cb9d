// Gated linear unit act(gate) * up over n numbers, contiguous. act: 0 SiLU, 1 GELU by tanh, x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).
#include "numbers.cuh"

struct Activated {
  float value, slope;
};

__device__ inline Activated activate(int act, float x) {
  constexpr float kTwice = 1.5957691216f, kCubic = 0.044715f;
  const float inner = act == 0 ? x : kTwice * (x + kCubic * x * x * x);
  const float inner_slope = act == 0 ? 1.0f : kTwice * (1.0f + 3.0f * kCubic * x * x);
  const float s = 1.0f / (1.0f + expf(-inner));
  return {x * s, s + x * s * (1.0f - s) * inner_slope};
}

template <class T, int N>
__global__ void glu_forward(int act, const T* gate, const T* up, Int n, T* y) {
  const Int i = (static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (i >= n) return;
  const Pack<T, N> g = load<N>(gate + i), u = load<N>(up + i);
  Pack<T, N> out;
  for (int k = 0; k < N; k++) put(out.at[k], activate(act, value(g.at[k])).value * value(u.at[k]));
  store(y + i, out);
}

template <class T, int N>
__global__ void glu_backward(int act, const T* gate, const T* up, const T* dy, Int n, T* dgate, T* dup) {
  const Int i = (static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (i >= n) return;
  const Pack<T, N> g = load<N>(gate + i), u = load<N>(up + i), d = load<N>(dy + i);
  Pack<T, N> to_gate, to_up;
  for (int k = 0; k < N; k++) {
    const Activated a = activate(act, value(g.at[k]));
    put(to_gate.at[k], value(d.at[k]) * value(u.at[k]) * a.slope);
    put(to_up.at[k], value(d.at[k]) * a.value);
  }
  store(dgate + i, to_gate);
  store(dup + i, to_up);
}
