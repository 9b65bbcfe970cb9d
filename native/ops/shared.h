// Shared by the fused operators: the kernels for this processor, and small checks.
#pragma once
#include "src/cuda_kernels.h"

#include "kernels/blocks.h"

namespace graft {

inline bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") && std::getenv("GRAFT_AVX2") == nullptr;
  return has;
}

template <typename Table>
const Table& pick(const Table& avx512, const Table& avx2) {
  return has_avx512() ? avx512 : avx2;
}

inline const BlockKernels& block_kernels() { return pick(avx512::blocks, avx2::blocks); }

inline void check_float(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device().is_cpu(), name, " must be float32 on the CPU, got ", tensor.scalar_type());
}

// The same for an operator that has kernels for GPUs too, which compute with bfloat16 as well.
inline void check_number(const at::Tensor& tensor, const char* name) {
  if (!runs_cuda_kernels(tensor)) return check_float(tensor, name);
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16, name, " must be float32 or bfloat16, got ", tensor.scalar_type());
}

// Refuses an input that would be trained without ever getting a gradient.
inline void check_frozen(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(!(at::GradMode::is_enabled() && tensor.requires_grad()), name, " gets no gradient from this operator, so it must not require one");
}

// x [n, heads, d], whose rows may be strided, and whose heads follow one another.
inline at::Tensor rows_of_heads(const at::Tensor& x) { return x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous(); }

// Returns the minimum of rows for each thread, so that its start is worthwhile.
inline int64_t grain(int64_t work_per_row) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work_per_row)); }

// The weight of a linear layer: [out, in] dense, or [out, bytes of a row] in blocks of `format` (blocks.h). A dense weight has the format -1.
struct Weight {
  at::Tensor tensor;
  int64_t format;

  bool dense() const { return format < 0; }
  BlockFormat block_format() const { return static_cast<BlockFormat>(format); }
  int64_t out() const { return tensor.size(0); }
  int64_t in() const;
  // Returns the rows [first, first + count), [count, in]: a view of a dense weight, else a new tensor of a type, float32 or bfloat16.
  at::Tensor rows(int64_t first, int64_t count, at::ScalarType type = at::kFloat) const;
  at::Tensor all(at::ScalarType type = at::kFloat) const { return rows(0, out(), type); }
};

Weight weight_of(const at::Tensor& tensor, int64_t format);

}  // namespace graft
