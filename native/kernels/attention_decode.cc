// Forward attention for a few queries over many keys: bound by the reading of keys and values, so they are read once, in place.
#include "attention_forward.h"

namespace graft::GRAFT_ISA {
namespace {

constexpr int64_t kBlock = 64;            // keys: small enough for their values to stay in L1 while all queries use them
constexpr int64_t kScoreStride = kBlock + 16;
#if defined(__AVX512F__)
constexpr int kRows = 4;  // queries at a time, as registers allow
#else
constexpr int kRows = 2;
#endif

struct Buffers {
  float *q, *values, *scores;
  int64_t floats;
  Buffers(const HeadLayout& head, float* scratch) {
    Arena arena(scratch);
    q = arena.take(kDecodeStack * head.stride);
    values = arena.take(kDecodeStack * head.stride);
    scores = arena.take(kDecodeStack * kScoreStride);
    floats = arena.needed();
  }
};

// scores[r][j] = q[r] . k[j] for R queries and `keys` keys, four keys at a time. Up to 3 scores behind the last are written too.
template <int R>
void dot_products(const HeadLayout& head, const float* q, const float* k, int64_t k_stride, int64_t keys, float* scores) {
  for (int64_t j = 0; j < keys; j += 4) {
    const float* key[4];
    for (int i = 0; i < 4; ++i) key[i] = k + min(j + i, keys - 1) * k_stride;
    F sum[R][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[r][i] = zero();
    for (int64_t d = 0; d < head.dim; d += F::W) {
      F part[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) part[i] = load(key[i] + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const F query = load(q + r * head.stride + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[r][i] = fma(query, part[i], sum[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) _mm_storeu_ps(scores + r * kScoreStride + j, hsum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
  }
}

// values[r] (+)= sum over j of scores[r][j] v[j].
template <int R>
void weighted_sum(const HeadLayout& head, const float* scores, const float* v, int64_t v_stride, int64_t keys, float* values, bool add) {
  int64_t d = 0;
  for (; d + 4 * F::W <= head.dim; d += 4 * F::W) tile<R, 4, false>(keys, scores, kScoreStride, v + d, v_stride, values + d, head.stride, add);
  for (; d < head.dim; d += F::W) tile<R, 1, false>(keys, scores, kScoreStride, v + d, v_stride, values + d, head.stride, add);
}

void dot_products(int64_t rows, const HeadLayout& head, const float* q, const float* k, int64_t k_stride, int64_t keys, float* scores) {
  if (rows == 1) dot_products<1>(head, q, k, k_stride, keys, scores);
  else if (rows == 2 || kRows == 2) dot_products<2>(head, q, k, k_stride, keys, scores);
  else if (rows == 3) dot_products<kRows - 1>(head, q, k, k_stride, keys, scores);
  else dot_products<kRows>(head, q, k, k_stride, keys, scores);
}

void weighted_sum(int64_t rows, const HeadLayout& head, const float* scores, const float* v, int64_t v_stride, int64_t keys, float* values, bool add) {
  if (rows == 1) weighted_sum<1>(head, scores, v, v_stride, keys, values, add);
  else if (rows == 2 || kRows == 2) weighted_sum<2>(head, scores, v, v_stride, keys, values, add);
  else if (rows == 3) weighted_sum<kRows - 1>(head, scores, v, v_stride, keys, values, add);
  else weighted_sum<kRows>(head, scores, v, v_stride, keys, values, add);
}

}  // namespace

int64_t decode_scratch(const AttentionShape& shape) { return Buffers(HeadLayout(shape.head_dim), nullptr).floats; }

void decode_task(const AttentionForward& args, const AttentionTask& task, float* workspace, float* scratch) {
  const AttentionShape& shape = args.shape;
  const HeadLayout head(shape.head_dim);
  const int64_t group = shape.heads / shape.kv_heads, stack = (task.q_end - task.q_begin) * group;
  const Buffers own(head, scratch);
  float *q = own.q, *values = own.values, *scores = own.scores;
  Running running;
  running.reset();

  const float* from = args.q.data + (shape.q_starts[task.row] + task.q_begin) * args.q.stride + task.kv_head * group * head.dim;
  for (int64_t i = 0; i < stack; ++i) {
    pack_row(head, q + i * head.stride, from + i / group * args.q.stride + i % group * head.dim, args.scale * kLog2E);
  }
  for (int64_t b = task.k_begin; b < task.k_end; b += kBlock) {
    const int64_t b_end = min(task.k_end, b + kBlock), keys = b_end - b, token = shape.k_starts[task.row] + b;
    const float* k = args.k.data + token * args.k.stride + task.kv_head * head.dim;
    const float* v = args.v.data + token * args.v.stride + task.kv_head * head.dim;
    const bool started = b > task.k_begin;
    for (int64_t r = 0; r < stack; r += kRows)
      dot_products(min(kRows, stack - r), head, q + r * head.stride, k, args.k.stride, keys, scores + r * kScoreStride);
    for (int64_t i = 0; i < stack; ++i) {
      const AttentionKeys seen = attention_visible(shape, task.row, task.q_begin + i / group);
      mask_row(scores + i * kScoreStride, 0, round_up(keys, F::W), seen.begin - b, min(seen.end - b, keys));
    }
    float factors[F::W];
    store(factors, softmax_step(scores, kScoreStride, stack, round_up(keys, F::W), running));
    for (int64_t i = 0; i < stack && started; ++i) scale_row(head, values + i * head.stride, factors[i]);
    for (int64_t r = 0; r < stack; r += kRows)
      weighted_sum(min(kRows, stack - r), head, scores + r * kScoreStride, v, args.v.stride, keys, values + r * head.stride, started);
  }
  leave_rows(args, head, task, 0, stack, values, running, workspace);
}

}  // namespace graft::GRAFT_ISA
