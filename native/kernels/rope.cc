#include "rope.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

void rotate(const float* x, int64_t x_stride, const float* cos, const float* sin, bool inverse, int64_t begin, int64_t end, int64_t heads, int64_t d,
            int64_t half, float* y) {
  const F sign(inverse ? -1.0f : 1.0f);
  for (int64_t n = begin; n < end; n++) {
    for (int64_t h = 0; h < heads; h++) {
      const float* in = x + n * x_stride + h * d;
      float* out = y + (n * heads + h) * d;
      for (int64_t i = 0; i < half; i += F::W) {
        const int lanes = half - i < F::W ? static_cast<int>(half - i) : F::W;
        const F c = load_n(cos + n * half + i, lanes), s = sign * load_n(sin + n * half + i, lanes);
        const F a = load_n(in + i, lanes), b = load_n(in + half + i, lanes);
        store_n(out + i, fnma(b, s, a * c), lanes);
        store_n(out + half + i, fma(a, s, b * c), lanes);
      }
      for (int64_t i = 2 * half; i < d; i++) out[i] = in[i];
    }
  }
}

}  // namespace

extern const RopeKernels rope{rotate};

}  // namespace graft::GRAFT_ISA
