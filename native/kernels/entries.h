// Single entries of a weight's gradient gᵀ x [out, in], for g [n, out] and x [n, in]: of the few weights that a quantiser clipped. Both
// factors are transposed first, some tokens at a time, so that an entry is a dot product of contiguous numbers.
#pragma once

#include <cstdint>

namespace graft {

struct EntryKernels {
  // to[j, i] = from[i, j] for i < rows, j < columns, and 0 for rows <= i < stride, the distance of rows of `to`.
  void (*transpose)(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t stride);

  // sums[e] += sum over t of g[t] x_t[columns[e], t] for e < count, with x_t [in, tokens]; tokens is a multiple of 16.
  void (*dots)(const float* g, const float* x_t, int64_t tokens, const int32_t* columns, int64_t count, float* sums);

  // What these entries, those of one row, add to the gradients of A [r, in] and B [out, r] is taken off:
  //   db[k] -= sum over e of sums[e] a_t[columns[e], k]        da_t[columns[e], k] -= sums[e] b[k]
  void (*take_off)(const float* sums, const int32_t* columns, int64_t count, const float* a_t, const float* b, int64_t r, float* da_t, float* db);
};

namespace avx2 { extern const EntryKernels entries; }
namespace avx512 { extern const EntryKernels entries; }

}  // namespace graft
