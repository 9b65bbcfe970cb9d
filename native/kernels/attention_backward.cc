// Backward attention (FlashAttention-2, algorithm 2). With scores s in units of log 2 and p = 2^(s - lse):
//   dv_j = sum_i p_ij dout_i      ds_ij = p_ij (dout_i . v_j - delta_i), delta_i = dout_i . out_i
//   dq_i = scale sum_j ds_ij k_j  dk_j = scale sum_i ds_ij q_i
// Keys are processed in blocks that fit L2; for each block, the stack is processed in chunks whose probabilities fit L2 too.
#include "attention_parts.h"
#include "attention_tile.h"

namespace graft::GRAFT_ISA {
namespace {

int64_t block_keys(const HeadLayout& head) { return clamp(round_down(16384 / head.padded, 32), 64, 256); }

// The tokens of a chunk of the stack: about 96 stacked queries, in whole register tiles if that takes at most twice as many.
int64_t chunk_tokens(int64_t group) {
  int64_t unit = 1;
  while (unit * group % kTileRows != 0) ++unit;
  const int64_t target = max(1, 96 / group);
  return unit * group <= 192 ? round_up(target, unit) : target;
}

// The arrays of a task, in scratch memory.
struct Buffers {
  float *k, *k_transposed, *v_transposed, *dk, *dv;   // of a block of keys; transposed: in panels
  float *q, *dout, *lse, *delta, *p, *ds;     // of a chunk of the stack; p holds scores first, ds holds dout . v first
  float* dq;                                  // of a register tile
  int64_t keys, stride;                       // of a block; of p and ds
  int64_t floats;

  Buffers(const HeadLayout& head, int64_t group, float* scratch) : keys(block_keys(head)), stride(keys + 16) {
    Arena arena(scratch);
    const int64_t tall = round_up(chunk_tokens(group) * group, kTileRows), wide = round_up(keys, kTileRows);
    k_transposed = arena.take(keys * head.dim);
    v_transposed = arena.take(keys * head.dim);
    k = arena.take(keys * head.stride);
    dk = arena.take(wide * head.stride);
    dv = arena.take(wide * head.stride);
    q = arena.take(tall * head.stride);
    dout = arena.take(tall * head.stride);
    lse = arena.take(tall);
    delta = arena.take(tall);
    p = arena.take(tall * stride);
    ds = arena.take(tall * stride);
    dq = arena.take(kTileRows * head.stride);
    floats = arena.needed();
  }
};

float dot(const float* a, const float* b, int64_t n) {
  F sum = zero();
  int64_t d = 0;
  for (; d + F::W <= n; d += F::W) sum = fma(load(a + d), load(b + d), sum);
  if (d < n) sum = fma(load_n(a + d, static_cast<int>(n - d)), load_n(b + d, static_cast<int>(n - d)), sum);
  return hsum(sum);
}

// Replaces the scores in p by probabilities, and dout . v in ds by p (dout . v - delta).
void softmax_gradient(float* p, float* ds, float lse, float delta, int64_t columns) {
  for (int64_t j = 0; j < columns; j += F::W) {
    const F probability = exp2_flushed(load(p + j) - F(lse));
    store(p + j, probability);
    store(ds + j, probability * (load(ds + j) - F(delta)));
  }
}

struct Backward {
  const AttentionBackward& args;
  const AttentionTask& task;
  const AttentionShape& shape;
  const HeadLayout head;
  const int64_t group;
  const int64_t q_start, k_start;  // first token of the row
  float* workspace;
  Buffers buffers;

  Backward(const AttentionBackward& a, const AttentionTask& t, float* work, float* scratch)
      : args(a), task(t), shape(a.shape), head(a.shape.head_dim), group(shape.heads / shape.kv_heads), q_start(shape.q_starts[t.row]),
        k_start(shape.k_starts[t.row]), workspace(work), buffers(head, group, scratch) {}

  float* dq_of(const StackPlace& place) const {
    if (task.partial < 0) return args.dq.data + (q_start + place.query) * args.dq.stride + (task.kv_head * group + place.member) * head.dim;
    return workspace + task.partial + ((place.query - task.q_begin) * group + place.member) * head.dim;
  }

  void pack_keys(int64_t begin, int64_t end) {
    const float* k = args.k.data + (k_start + begin) * args.k.stride + task.kv_head * head.dim;
    const float* v = args.v.data + (k_start + begin) * args.v.stride + task.kv_head * head.dim;
    pack_transposed(head, buffers.k_transposed, [&](int64_t j) { return k + j * args.k.stride; }, end - begin);
    pack_transposed(head, buffers.v_transposed, [&](int64_t j) { return v + j * args.v.stride; }, end - begin);
    for (int64_t j = 0; j < end - begin; ++j) pack_row(head, buffers.k + j * head.stride, k + j * args.k.stride, 1.0f);
    const int64_t floats = round_up(end - begin, kTileRows) * head.stride;
    clear(buffers.dk, 0, floats);
    clear(buffers.dv, 0, floats);
  }

  void pack_queries(int64_t begin, int64_t stack) {
    StackPlace place(begin, 0, group);
    for (int64_t i = 0; i < stack; ++i, place.next()) {
      const int64_t token = q_start + place.query, q_head = task.kv_head * group + place.member;
      const float* dout = args.dout.data + token * args.dout.stride + q_head * head.dim;
      pack_row(head, buffers.q + i * head.stride, args.q.data + token * args.q.stride + q_head * head.dim, args.scale * kLog2E);
      pack_row(head, buffers.dout + i * head.stride, dout, 1.0f);
      const float lse = args.lse[token * shape.heads + q_head];
      buffers.lse[i] = lse == -__builtin_inff() ? 0.0f : lse * kLog2E;  // a query without a visible key: its scores are masked, p becomes 0
      buffers.delta[i] = dot(dout, args.out.data + token * args.out.stride + q_head * head.dim, head.dim);
    }
  }

  void write_dq(StackPlace place, int64_t rows, bool add) const {
    const float* from = buffers.dq;
    for (int64_t i = 0; i < rows; ++i, place.next(), from += head.stride) {
      float* to = dq_of(place);
      if (!add) unpack_row(head, to, from, args.scale);
      for (int64_t d = 0; d < head.dim && add; d += F::W) {
        const int n = static_cast<int>(min(F::W, head.dim - d));
        store_n(to + d, fma(F(args.scale), load(from + d), load_n(to + d, n)), n);
      }
    }
  }

  // Computes probabilities, ds and dq of the stacked queries [first, first + rows), at most a register tile, against the keys
  // [begin, end). The first query of the chunk is `chunk`.
  void tile_of_queries(int64_t chunk, int64_t first, int64_t rows, int64_t begin, int64_t end) {
    const StackPlace place(chunk, first, group);
    const TileKeys keys(shape, task, place.query, StackPlace(chunk, first + rows - 1, group).query, begin, end);
    if (keys.none()) return;
    const int64_t columns = keys.end - keys.begin;
    float *p = buffers.p + first * buffers.stride, *ds = buffers.ds + first * buffers.stride;
    multiply<false>(rows, columns, head.dim, buffers.q + first * head.stride, head.stride, buffers.k_transposed + keys.begin * head.dim, kTileColumns,
                    kTileColumns * head.dim, p + keys.begin, buffers.stride, false);
    multiply<false>(rows, columns, head.dim, buffers.dout + first * head.stride, head.stride, buffers.v_transposed + keys.begin * head.dim, kTileColumns,
                    kTileColumns * head.dim, ds + keys.begin, buffers.stride, false);
    mask_tile(shape, task.row, place, rows, begin, keys, p, buffers.stride);
    // Tiles of keys, less than a vector high, may extend beyond either end of the visible keys: there p and ds must be 0 too.
    const bool before = keys.begin > 0, behind = keys.end < end - begin;
    for (int64_t i = 0; i < rows; ++i) {
      float *p_row = p + i * buffers.stride, *ds_row = ds + i * buffers.stride;
      softmax_gradient(p_row + keys.begin, ds_row + keys.begin, buffers.lse[first + i], buffers.delta[first + i], columns);
      if (before) store(p_row + keys.begin - F::W, zero()), store(ds_row + keys.begin - F::W, zero());
      if (behind) store(p_row + keys.end, zero()), store(ds_row + keys.end, zero());
    }
    multiply<false>(rows, head.padded, keys.seen_end - keys.seen_begin, ds + keys.seen_begin, buffers.stride, buffers.k + keys.seen_begin * head.stride,
                    head.stride, kTileColumns, buffers.dq, head.stride, false);
    write_dq(place, rows, keys.earlier);
  }

  // Adds the contribution of the queries [chunk, chunk_end) to dk and dv of the keys [begin, end).
  void add_to_keys(int64_t chunk, int64_t chunk_end, int64_t begin, int64_t end) {
    const int64_t offset = attention_keys(shape, task.row) - attention_queries(shape, task.row);
    for (int64_t j = begin; j < end; j += kTileRows) {
      const int64_t j_end = min(j + kTileRows, end);
      const int64_t first = shape.causal ? max(chunk, j - offset) : chunk;
      const int64_t last = shape.window > 0 ? min(chunk_end, j_end - 1 + shape.window - offset) : chunk_end;
      if (first >= last) continue;
      const int64_t skip = (first - chunk) * group, depth = (last - first) * group, at = skip * buffers.stride + j - begin;
      multiply<true>(j_end - j, head.padded, depth, buffers.p + at, buffers.stride, buffers.dout + skip * head.stride, head.stride, kTileColumns,
                     buffers.dv + (j - begin) * head.stride, head.stride, true);
      multiply<true>(j_end - j, head.padded, depth, buffers.ds + at, buffers.stride, buffers.q + skip * head.stride, head.stride, kTileColumns,
                     buffers.dk + (j - begin) * head.stride, head.stride, true);
    }
  }

  // Sets dq to 0 in the register tiles that have no visible key in the task.
  void clear_invisible(int64_t chunk, int64_t stack) const {
    for (int64_t t = 0; t < stack; t += kTileRows) {
      StackPlace place(chunk, t, group);
      const int64_t rows = min(kTileRows, stack - t);
      if (!TileKeys(shape, task, place.query, StackPlace(chunk, t + rows - 1, group).query, task.k_begin, task.k_end).none()) continue;
      for (int64_t i = 0; i < rows; ++i, place.next()) clear(dq_of(place), 0, head.dim);
    }
  }

  void run() {
    const int64_t tokens = chunk_tokens(group);
    for (int64_t begin = task.k_begin; begin < task.k_end || begin == task.k_begin; begin += buffers.keys) {
      const int64_t end = min(task.k_end, begin + buffers.keys);
      if (begin < end) pack_keys(begin, end);
      for (int64_t chunk = task.q_begin; chunk < task.q_end; chunk += tokens) {
        const int64_t chunk_end = min(task.q_end, chunk + tokens), stack = (chunk_end - chunk) * group;
        if (begin == task.k_begin) clear_invisible(chunk, stack);
        if (TileKeys(shape, task, chunk, chunk_end - 1, begin, end).none()) continue;
        pack_queries(chunk, stack);
        for (int64_t t = 0; t < stack; t += kTileRows) tile_of_queries(chunk, t, min(kTileRows, stack - t), begin, end);
        add_to_keys(chunk, chunk_end, begin, end);
      }
      const int64_t at = task.kv_head * head.dim;
      for (int64_t j = begin; j < end; ++j) {
        unpack_row(head, args.dk.data + (k_start + j) * args.dk.stride + at, buffers.dk + (j - begin) * head.stride, kLn2);
        unpack_row(head, args.dv.data + (k_start + j) * args.dv.stride + at, buffers.dv + (j - begin) * head.stride, 1.0f);
      }
    }
  }
};

}  // namespace

int64_t backward_scratch(const AttentionShape& shape) {
  return Buffers(HeadLayout(shape.head_dim), shape.heads / shape.kv_heads, nullptr).floats;
}

void backward(const AttentionBackward& args, const AttentionTask* tasks, int64_t begin, int64_t end, float* workspace, float* scratch) {
  for (int64_t i = begin; i < end; ++i) Backward(args, tasks[i], workspace, scratch).run();
}

void backward_merge(const AttentionBackward& args, const AttentionTask* parts, const AttentionMerge* merges, int64_t begin, int64_t end,
                    const float* workspace) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  for (int64_t m = begin; m < end; ++m)
    for (int64_t part = 1; part < merges[m].count; ++part) {
      const AttentionTask& task = parts[merges[m].first + part];
      const float* from = workspace + task.partial;
      for (int64_t query = task.q_begin; query < task.q_end; ++query, from += group * dim) {
        float* to = args.dq.data + (shape.q_starts[task.row] + query) * args.dq.stride + task.kv_head * group * dim;
        for (int64_t d = 0; d < group * dim; d += F::W) {
          const int n = static_cast<int>(min(F::W, group * dim - d));
          store_n(to + d, load_n(to + d, n) + load_n(from + d, n), n);
        }
      }
    }
}

}  // namespace graft::GRAFT_ISA
