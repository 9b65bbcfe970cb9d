#include "glu.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

struct Silu {
  static F value(F x) { return x * sigmoid(x); }
  static void both(F x, F& value, F& slope) {
    const F s = sigmoid(x);
    value = x * s;
    slope = fma(value, F(1.0f) - s, s);
  }
};

// 0.5 x (1 + tanh(u)) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3)
struct GeluTanh {
  static constexpr float kTwice = 1.5957691216f, kCubic = 0.044715f;
  static F inner(F x) { return F(kTwice) * fma(F(kCubic) * x * x, x, x); }
  static F value(F x) { return x * sigmoid(inner(x)); }
  static void both(F x, F& value, F& slope) {
    const F s = sigmoid(inner(x));
    value = x * s;
    const F inner_slope = F(kTwice) * fma(F(3.0f * kCubic) * x, x, F(1.0f));
    slope = fma(value * (F(1.0f) - s), inner_slope, s);
  }
};

template <typename Act>
void forward_of(const float* gate, const float* up, int64_t begin, int64_t end, float* y) {
  for (int64_t i = begin; i < end; i += F::W) {
    const int lanes = end - i < F::W ? static_cast<int>(end - i) : F::W;
    store_n(y + i, Act::value(load_n(gate + i, lanes)) * load_n(up + i, lanes), lanes);
  }
}

template <typename Act>
void backward_of(const float* gate, const float* up, const float* dy, int64_t begin, int64_t end, float* dgate, float* dup) {
  for (int64_t i = begin; i < end; i += F::W) {
    const int lanes = end - i < F::W ? static_cast<int>(end - i) : F::W;
    F value, slope;
    Act::both(load_n(gate + i, lanes), value, slope);
    const F g = load_n(dy + i, lanes);
    store_n(dgate + i, g * load_n(up + i, lanes) * slope, lanes);
    store_n(dup + i, g * value, lanes);
  }
}

void forward(Activation act, const float* gate, const float* up, int64_t begin, int64_t end, float* y) {
  if (act == Activation::kSilu) return forward_of<Silu>(gate, up, begin, end, y);
  forward_of<GeluTanh>(gate, up, begin, end, y);
}

void backward(Activation act, const float* gate, const float* up, const float* dy, int64_t begin, int64_t end, float* dgate, float* dup) {
  if (act == Activation::kSilu) return backward_of<Silu>(gate, up, dy, begin, end, dgate, dup);
  backward_of<GeluTanh>(gate, up, dy, begin, end, dgate, dup);
}

}  // namespace

extern const GluKernels glu{forward, backward};

}  // namespace graft::GRAFT_ISA
