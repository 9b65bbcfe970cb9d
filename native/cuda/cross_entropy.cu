// Cross-entropy of rows of logits, and its gradient in their place, as kernels/cross_entropy.cc.
#include "numbers.cuh"

// One block a row of v logits. A row with a negative label has the loss 0 and no gradient; a label beyond the vocabulary gives NaN.
template <class T>
__global__ void cross_entropy(T* logits, const Int* labels, Int v, float* losses) {
  T* row = logits + blockIdx.x * v;
  const Int label = labels[blockIdx.x];
  float top = __uint_as_float(0xff800000u);
  for (Int i = threadIdx.x; i < v; i += blockDim.x) top = fmaxf(top, value(row[i]));
  top = block_max(top);
  float total = 0;
  for (Int i = threadIdx.x; i < v; i += blockDim.x) total += expf(value(row[i]) - top);
  total = block_sum(total);
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = label < 0 ? 0.0f : label < v ? logf(total) + top - value(row[label]) : __uint_as_float(0x7fc00000u);
  }
  __syncthreads();  // the label's logit has been read
  for (Int i = threadIdx.x; i < v; i += blockDim.x) {
    put(row[i], label < 0 ? 0.0f : expf(value(row[i]) - top) / total - (i == label ? 1.0f : 0.0f));
  }
}
