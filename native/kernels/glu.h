// Gated linear units, act(gate) * up (arXiv 2002.05202): SwiGLU with SiLU, GeGLU with GELU in its tanh form (arXiv 1606.08415, section 2).
#pragma once

#include <cstdint>

namespace graft {

enum class Activation : int64_t { kSilu = 0, kGeluTanh = 1 };

struct GluKernels {
  // y[i] = act(gate[i]) * up[i] for begin <= i < end
  void (*forward)(Activation act, const float* gate, const float* up, int64_t begin, int64_t end, float* y);
  void (*backward)(Activation act, const float* gate, const float* up, const float* dy, int64_t begin, int64_t end, float* dgate, float* dup);
};

namespace avx2 { extern const GluKernels glu; }
namespace avx512 { extern const GluKernels glu; }

}  // namespace graft
