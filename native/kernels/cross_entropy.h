// Cross-entropy of logits against one label in each row; its gradient is written over the logits.
#pragma once

#include <cstdint>

namespace graft {

struct CrossEntropyKernels {
  // logits [n, v], contiguous: row i becomes softmax(row) - onehot(label), and loss[i] = logsumexp(row) - row[label], in nats.
  void (*rows)(float* logits, const int64_t* labels, int64_t begin, int64_t end, int64_t v, double* loss);
};

namespace avx2 { extern const CrossEntropyKernels cross_entropy; }
namespace avx512 { extern const CrossEntropyKernels cross_entropy; }

}  // namespace graft
