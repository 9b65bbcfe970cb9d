// The steps of the forward pass that prefill (attention_forward.cc) and decoding (attention_decode.cc) share.
#pragma once

#include "attention_tile.h"

namespace graft::GRAFT_ISA {

void task_in_place(const AttentionForward& args, const AttentionTask& task, float* workspace, float* scratch);
int64_t scratch_in_place(const AttentionShape& shape);

// The running state of the online softmax of up to W queries: the largest score so far, and the sum of 2^(score - largest).
// The sum is 0 for queries without a visible key so far.
struct Running {
  float largest[F::W];
  float sum[F::W];
  void reset() {
    store(largest, F(-__builtin_inff()));
    store(sum, zero());
  }
};
static_assert(kTileRows <= F::W && kAttentionStackInPlace <= F::W);

template <int R>
inline void row_maxima(const float* scores, int64_t stride, int64_t columns, float* maxima) {
  F top[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) top[r] = load(scores + r * stride);
  for (int64_t j = F::W; j < columns; j += F::W)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) top[r] = max(top[r], load(scores + r * stride + j));
  const __m128 all = hmax4(top[0], top[1 % R], top[2 % R], top[3 % R]);
  if (R == 4) _mm_storeu_ps(maxima, all);
  else _mm_storel_pi(reinterpret_cast<__m64*>(maxima), all);
}

template <int R>
inline void row_powers(float* scores, int64_t stride, int64_t columns, const float* largest, float* sums) {
  F sum[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r] = zero();
  for (int64_t j = 0; j < columns; j += F::W)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F p = exp2_flushed(load(scores + r * stride + j) - F(largest[r]));
      store(scores + r * stride + j, p);
      sum[r] += p;
    }
  const __m128 all = hsum4(sum[0], sum[1 % R], sum[2 % R], sum[3 % R]);
  if (R == 4) _mm_storeu_ps(sums, all);
  else _mm_storel_pi(reinterpret_cast<__m64*>(sums), all);
}

// Replaces the scores of `rows` queries (and possibly of one more row) by 2^(score - largest); returns the factors by which the earlier
// sums of values of each query must be multiplied (algorithm 1, lines 9 and 10). columns: whole vectors.
inline F softmax_step(float* scores, int64_t stride, int64_t rows, int64_t columns, Running& running) {
  float maxima[F::W], sums[F::W], bases[F::W];
  store(maxima, F(-__builtin_inff()));
  store(sums, zero());
  int64_t i = 0;
  for (; i + 2 < rows; i += 4) row_maxima<4>(scores + i * stride, stride, columns, maxima + i);
  if (i < rows) row_maxima<2>(scores + i * stride, stride, columns, maxima + i);

  const F before = load(running.largest), largest = max(before, load(maxima));
  // The lowest finite float instead of -infinity: where no key was visible yet, the powers are then 0 and not NaN.
  const F base = max(F(-3.4028235e38f), largest);
  const F factor = exp2_flushed(before - base);
  store(bases, base);
  for (i = 0; i + 2 < rows; i += 4) row_powers<4>(scores + i * stride, stride, columns, bases + i, sums + i);
  if (i < rows) row_powers<2>(scores + i * stride, stride, columns, bases + i, sums + i);
  store(running.largest, largest);
  store(running.sum, fma(load(running.sum), factor, load(sums)));
  return factor;
}

// A partial result of one kv head in the workspace: the sums of values [stack, D], then for each query its largest score and its sum.
struct Partial {
  float* values;
  float* state;
  Partial(float* workspace, const AttentionTask& task, int64_t kv_head, int64_t stack, int64_t dim)
      : values(workspace + task.partial + (kv_head - task.kv_head) * stack * (dim + 2)), state(values + stack * dim) {}
};

// Writes out and lse of up to W queries from their sums of values, the first query at `place`; rows of values are not read where no key
// was visible.
inline void finish_rows(const AttentionForward& args, const HeadLayout& head, int64_t row, int64_t kv_head, StackPlace place, int64_t rows,
                        const float* values, const Running& running) {
  float factor[F::W], lse[F::W];
  const F sum = load(running.sum);
  store(factor, F(1.0f) / sum);
  store(lse, fma(load(running.largest), F(kLn2), log(sum)));
  for (int64_t i = 0; i < rows; ++i, place.next(), values += head.stride) {
    const int64_t token = args.shape.q_starts[row] + place.query, q_head = kv_head * place.group + place.member;
    float* out = args.out.data + token * args.out.stride + q_head * head.dim;
    const bool has_no_key = running.sum[i] == 0.0f;
    if (has_no_key) clear(out, 0, head.dim);
    else unpack_row(head, out, values, factor[i]);
    if (args.lse) args.lse[token * args.shape.heads + q_head] = has_no_key ? -__builtin_inff() : lse[i];
  }
}

// Writes the results of the stacked queries [first, first + rows) of a task: final ones, or partial ones in the workspace for the merge.
inline void write_rows(const AttentionForward& args, const HeadLayout& head, const AttentionTask& task, int64_t kv_head, int64_t first, int64_t rows,
                       const float* values, const Running& running, float* workspace) {
  const int64_t group = args.shape.heads / args.shape.kv_heads;
  if (task.partial < 0) return finish_rows(args, head, task.row, kv_head, StackPlace(task.q_begin, first, group), rows, values, running);
  const Partial partial(workspace, task, kv_head, (task.q_end - task.q_begin) * group, head.dim);
  for (int64_t i = 0; i < rows; ++i) {
    float* to = partial.values + (first + i) * head.dim;
    if (running.sum[i] == 0.0f) clear(to, 0, head.dim);
    else unpack_row(head, to, values + i * head.stride, 1.0f);
    partial.state[2 * (first + i)] = running.largest[i];
    partial.state[2 * (first + i) + 1] = running.sum[i];
  }
}

}  // namespace graft::GRAFT_ISA
