#include "norm.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

// Calls body(i, lanes) for every vector of a row; the last may be partial.
template <typename Body>
inline void vectors(int64_t c, Body body) {
  int64_t i = 0;
  for (; i + F::W <= c; i += F::W) body(i, F::W);
  if (i < c) body(i, static_cast<int>(c - i));
}

void forward(const float* x, const float* delta, const float* weight, float eps, int64_t begin, int64_t end, int64_t c, float* sum, float* y,
             float* inverse_rms) {
  for (int64_t n = begin; n < end; n++) {
    const float* row = x + n * c;
    F squares = zero();
    if (delta) {
      float* s = sum + n * c;
      vectors(c, [&](int64_t i, int lanes) {
        const F value = load_n(row + i, lanes) + load_n(delta + n * c + i, lanes);
        store_n(s + i, value, lanes);
        squares = fma(value, value, squares);
      });
      row = s;
    } else {
      vectors(c, [&](int64_t i, int lanes) {
        const F value = load_n(row + i, lanes);
        squares = fma(value, value, squares);
      });
    }
    const float r = 1.0f / __builtin_sqrtf(hsum(squares) / static_cast<float>(c) + eps);
    inverse_rms[n] = r;
    vectors(c, [&](int64_t i, int lanes) { store_n(y + n * c + i, load_n(row + i, lanes) * F(r) * load_n(weight + i, lanes), lanes); });
  }
}

void backward(const float* s, const float* weight, const float* inverse_rms, const float* dy, const float* dsum, int64_t begin, int64_t end,
              int64_t c, float* dx) {
  for (int64_t n = begin; n < end; n++) {
    const float* s_row = s + n * c;
    const float* dy_row = dy + n * c;
    F dot = zero();  // the sum of w dy s
    vectors(c, [&](int64_t i, int lanes) { dot = fma(load_n(dy_row + i, lanes) * load_n(weight + i, lanes), load_n(s_row + i, lanes), dot); });
    const float r = inverse_rms[n];
    const F factor(hsum(dot) * r * r * r / static_cast<float>(c));
    vectors(c, [&](int64_t i, int lanes) {
      F value = fnma(load_n(s_row + i, lanes), factor, load_n(dy_row + i, lanes) * load_n(weight + i, lanes) * F(r));
      if (dsum) value += load_n(dsum + n * c + i, lanes);
      store_n(dx + n * c + i, value, lanes);
    });
  }
}

void backward_weight(const float* s, const float* inverse_rms, const float* dy, int64_t begin, int64_t end, int64_t c, float* dweight) {
  for (int64_t n = begin; n < end; n++) {
    const F r(inverse_rms[n]);
    vectors(c, [&](int64_t i, int lanes) {
      store_n(dweight + i, fma(load_n(s + n * c + i, lanes) * r, load_n(dy + n * c + i, lanes), load_n(dweight + i, lanes)), lanes);
    });
  }
}

}  // namespace

extern const NormKernels norm{forward, backward, backward_weight};

}  // namespace graft::GRAFT_ISA
