// Forward attention of a few queries over many keys, as in decoding. It is bound by the reading of keys and values, so they are read once,
// unpacked, and in the order of memory: all heads of a few tokens before the next tokens.
#include "attention_forward.h"

namespace graft::GRAFT_ISA {
namespace {

constexpr int64_t kBlock = 32;  // keys between two steps of the softmax: their values stay in cache while each head is processed
constexpr int64_t kScoreStride = kBlock + 16;
#if defined(__AVX512F__)
constexpr int kRows = 4;  // queries at a time, as many as the registers allow
#else
constexpr int kRows = 2;
#endif

// The arrays of one kv head, in scratch memory.
struct Buffers {
  float *q, *values, *scores;
  Running* running;
  int64_t floats;  // of all kv heads

  Buffers(const HeadLayout& head, int64_t kv_heads, float* scratch) {
    Arena arena(scratch);
    q = arena.take(kv_heads * kAttentionStackInPlace * head.stride);
    values = arena.take(kv_heads * kAttentionStackInPlace * head.stride);
    scores = arena.take(kv_heads * kAttentionStackInPlace * kScoreStride);
    running = reinterpret_cast<Running*>(arena.take(kv_heads * static_cast<int64_t>(sizeof(Running) / sizeof(float))));
    floats = arena.needed();
  }
  void next_head(const HeadLayout& head) {
    q += kAttentionStackInPlace * head.stride;
    values += kAttentionStackInPlace * head.stride;
    scores += kAttentionStackInPlace * kScoreStride;
    ++running;
  }
};

// scores[r][j] = q[r] . k[j] for R queries and up to four keys; four scores are written.
template <int R>
void dot_products(const HeadLayout& head, const float* q, const float* k, int64_t k_stride, int64_t keys, float* scores) {
  const float* key[4];
  for (int i = 0; i < 4; ++i) key[i] = k + min(i, keys - 1) * k_stride;
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
  for (int r = 0; r < R; ++r) _mm_storeu_ps(scores + r * kScoreStride, hsum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
}

// values[r] (+)= sum over j of scores[r][j] v[j].
template <int R>
void weighted_sum(const HeadLayout& head, const float* scores, const float* v, int64_t v_stride, int64_t keys, float* values, bool add) {
  int64_t d = 0;
  for (; d + 4 * F::W <= head.dim; d += 4 * F::W) tile<R, 4, false>(keys, scores, kScoreStride, v + d, v_stride, values + d, head.stride, add);
  for (; d < head.dim; d += F::W) tile<R, 1, false>(keys, scores, kScoreStride, v + d, v_stride, values + d, head.stride, add);
}

// Prefetches the part of one head of some tokens into L2: the processor does not detect the pattern of reading head by head (from memory,
// the prefetch gives a factor of 2).
void prefetch_rows(const HeadLayout& head, const float* rows, int64_t stride, int64_t tokens) {
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t d = 0; d < head.dim; d += 16) __builtin_prefetch(rows + i * stride + d, 0, 2);
}

// The same two for any number of queries.
void dot_products(int64_t rows, const HeadLayout& head, const float* q, const float* k, int64_t k_stride, int64_t keys, float* scores) {
  for (; rows > 0; rows -= kRows, q += kRows * head.stride, scores += kRows * kScoreStride) {
    if (rows == 1) dot_products<1>(head, q, k, k_stride, keys, scores);
    else if (rows == 2 || kRows == 2) dot_products<2>(head, q, k, k_stride, keys, scores);
    else if (rows == 3) dot_products<kRows - 1>(head, q, k, k_stride, keys, scores);
    else dot_products<kRows>(head, q, k, k_stride, keys, scores);
  }
}

void weighted_sum(int64_t rows, const HeadLayout& head, const float* scores, const float* v, int64_t v_stride, int64_t keys, float* values, bool add) {
  for (; rows > 0; rows -= kRows, scores += kRows * kScoreStride, values += kRows * head.stride) {
    if (rows == 1) weighted_sum<1>(head, scores, v, v_stride, keys, values, add);
    else if (rows == 2 || kRows == 2) weighted_sum<2>(head, scores, v, v_stride, keys, values, add);
    else if (rows == 3) weighted_sum<kRows - 1>(head, scores, v, v_stride, keys, values, add);
    else weighted_sum<kRows>(head, scores, v, v_stride, keys, values, add);
  }
}

}  // namespace

int64_t scratch_in_place(const AttentionShape& shape) { return Buffers(HeadLayout(shape.head_dim), shape.kv_heads, nullptr).floats; }

void task_in_place(const AttentionForward& args, const AttentionTask& task, float* workspace, float* scratch) {
  const AttentionShape& shape = args.shape;
  const HeadLayout head(shape.head_dim);
  const int64_t group = shape.heads / shape.kv_heads, stack = (task.q_end - task.q_begin) * group;
  const Buffers first_head(head, shape.kv_heads, scratch);

  Buffers buffers = first_head;
  for (int64_t kv_head = task.kv_head; kv_head < task.kv_head_end; ++kv_head, buffers.next_head(head)) {
    StackPlace place(task.q_begin, 0, group);
    for (int64_t i = 0; i < stack; ++i, place.next()) {
      const int64_t token = shape.q_starts[task.row] + place.query;
      pack_row(head, buffers.q + i * head.stride, args.q.data + token * args.q.stride + (kv_head * group + place.member) * head.dim, args.scale * kLog2E);
    }
    buffers.running->reset();
  }
  // A block ends where its page does.
  const auto keys_from = [&](int64_t key) { return key < task.k_end ? attention_adjacent(shape, task.row, key, min(task.k_end - key, kBlock)) : 0; };
  int64_t keys;
  for (int64_t b = task.k_begin; b < task.k_end; b += keys) {
    keys = keys_from(b);
    const int64_t next_keys = keys_from(b + keys), columns = round_up(keys, F::W);
    const int64_t token = attention_key(shape, task.row, b), next_token = next_keys > 0 ? attention_key(shape, task.row, b + keys) : token;
    const float *k_block = args.k.data + token * args.k.stride, *v_block = args.v.data + token * args.v.stride;
    const float* k_next = args.k.data + next_token * args.k.stride;
    for (int64_t j = 0; j < keys; j += 4) {
      buffers = first_head;
      for (int64_t kv_head = task.kv_head; kv_head < task.kv_head_end; ++kv_head, buffers.next_head(head)) {
        dot_products(stack, head, buffers.q, k_block + j * args.k.stride + kv_head * head.dim, args.k.stride, keys - j, buffers.scores + j);
        prefetch_rows(head, v_block + j * args.v.stride + kv_head * head.dim, args.v.stride, min(keys - j, 4));
      }
    }
    const bool started = b > task.k_begin;
    buffers = first_head;
    for (int64_t kv_head = task.kv_head; kv_head < task.kv_head_end; ++kv_head, buffers.next_head(head)) {
      StackPlace place(task.q_begin, 0, group);
      for (int64_t i = 0; i < stack; ++i, place.next()) {
        const AttentionKeys seen = attention_visible(shape, task.row, place.query);
        mask_row(buffers.scores + i * kScoreStride, 0, columns, seen.begin - b, min(seen.end - b, keys));
      }
      float factors[F::W];
      store(factors, softmax_step(buffers.scores, kScoreStride, stack, columns, *buffers.running));
      for (int64_t i = 0; i < stack && started; ++i) scale_row(head, buffers.values + i * head.stride, factors[i]);
      prefetch_rows(head, k_next + kv_head * head.dim, args.k.stride, next_keys);
      weighted_sum(stack, head, buffers.scores, v_block + kv_head * head.dim, args.v.stride, keys, buffers.values, started);
    }
  }
  buffers = first_head;
  for (int64_t kv_head = task.kv_head; kv_head < task.kv_head_end; ++kv_head, buffers.next_head(head))
    write_rows(args, head, task, kv_head, 0, stack, buffers.values, *buffers.running, workspace);
}

}  // namespace graft::GRAFT_ISA
