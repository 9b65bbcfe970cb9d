// Forward attention: the blocked kernel, and the merge of partial results over ranges of keys. See attention.h.
#include "attention_forward.h"

#include "attention_parts.h"

namespace graft::GRAFT_ISA {
namespace {

// The keys of a block: its packed keys and values take 64 KB each, which fit L2 together with the stack.
int64_t block_keys(const HeadLayout& head) { return clamp(round_down(16384 / head.padded, 32), 64, 256); }

struct Buffers {
  float *q, *values;  // of the stack; of one register tile only if all keys fit in one block
  Running* running;   // of each register tile; likewise
  float *keys, *v;    // of a block; keys transposed in panels
  float* scores;      // of a register tile
  int64_t block, score_stride, floats;

  Buffers(const HeadLayout& head, int64_t stack, float* scratch) : block(block_keys(head)), score_stride(block + 16) {
    const int64_t tiles = round_up(stack, kTileRows) / kTileRows;
    Arena arena(scratch);
    q = arena.take(tiles * kTileRows * head.stride);
    values = arena.take(tiles * kTileRows * head.stride);
    running = reinterpret_cast<Running*>(arena.take(tiles * static_cast<int64_t>(sizeof(Running) / sizeof(float))));
    keys = arena.take(block * head.dim);
    v = arena.take(block * head.stride);
    scores = arena.take(kTileRows * score_stride);
    floats = arena.needed();
  }
};

struct Forward {
  const AttentionForward& args;
  const AttentionTask& task;
  const AttentionShape& shape;
  const HeadLayout head;
  const int64_t group, stack;
  float* workspace;
  const Buffers buffers;

  Forward(const AttentionForward& a, const AttentionTask& t, float* work, float* scratch)
      : args(a), task(t), shape(a.shape), head(a.shape.head_dim), group(shape.heads / shape.kv_heads), stack((t.q_end - t.q_begin) * group),
        workspace(work), buffers(head, stack, scratch) {}

  void pack_block(int64_t begin, int64_t end) {
    const float* k = args.k.data + task.kv_head * head.dim;
    const float* v = args.v.data + task.kv_head * head.dim;
    pack_transposed(head, buffers.keys, [&](int64_t j) { return k + attention_key(shape, task.row, begin + j) * args.k.stride; }, end - begin);
    for (int64_t j = 0; j < end - begin; ++j)
      pack_row(head, buffers.v + j * head.stride, v + attention_key(shape, task.row, begin + j) * args.v.stride, 1.0f);
  }

  void pack_queries(StackPlace place, int64_t rows, float* to) {
    for (int64_t i = 0; i < rows; ++i, place.next(), to += head.stride) {
      const int64_t token = shape.q_starts[task.row] + place.query;
      pack_row(head, to, args.q.data + token * args.q.stride + (task.kv_head * group + place.member) * head.dim, args.scale * kLog2E);
    }
  }

  // Processes the stacked queries [first, first + rows), at most a register tile, against the keys [begin, end).
  void tile_of_queries(int64_t first, int64_t rows, int64_t begin, int64_t end) {
    const StackPlace place(task.q_begin, first, group);
    const TileKeys keys(shape, task, place.query, StackPlace(task.q_begin, first + rows - 1, group).query, begin, end);
    const int64_t slot = task.k_end - task.k_begin <= buffers.block ? 0 : first;
    float *q = buffers.q + slot * head.stride, *values = buffers.values + slot * head.stride;
    Running& running = buffers.running[slot / kTileRows];
    if (begin == task.k_begin) running.reset();
    if (!keys.none()) {
      if (!keys.earlier) pack_queries(place, rows, q);
      multiply<false>(rows, keys.end - keys.begin, head.dim, q, head.stride, buffers.keys + keys.begin * head.dim, kTileColumns,
                      kTileColumns * head.dim, buffers.scores + keys.begin, buffers.score_stride, false);
      mask_tile(shape, task.row, place, rows, begin, keys, buffers.scores, buffers.score_stride);
      float factors[F::W];
      store(factors, softmax_step(buffers.scores + keys.begin, buffers.score_stride, rows, keys.end - keys.begin, running));
      for (int64_t i = 0; i < rows && keys.earlier; ++i) scale_row(head, values + i * head.stride, factors[i]);
      multiply<false>(rows, head.padded, keys.seen_end - keys.seen_begin, buffers.scores + keys.seen_begin, buffers.score_stride,
                      buffers.v + keys.seen_begin * head.stride, head.stride, kTileColumns, values, head.stride, keys.earlier);
    }
    const bool done = keys.first >= keys.last ? begin == task.k_begin : begin < keys.last && keys.last <= end;
    if (done) write_rows(args, head, task, task.kv_head, first, rows, values, running, workspace);
  }

  void run() {
    for (int64_t begin = task.k_begin; begin < task.k_end || begin == task.k_begin; begin += buffers.block) {
      const int64_t end = min(task.k_end, begin + buffers.block);
      if (begin < end) pack_block(begin, end);
      for (int64_t t = 0; t < stack; t += kTileRows) tile_of_queries(t, min(kTileRows, stack - t), begin, end);
    }
  }
};

}  // namespace

int64_t forward_scratch(const AttentionShape& shape, const AttentionTask* tasks, int64_t count) {
  const HeadLayout head(shape.head_dim);
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) tokens = max(tokens, tasks[i].q_end - tasks[i].q_begin);
  const Buffers buffers(head, tokens * (shape.heads / shape.kv_heads), nullptr);
  return max(buffers.floats, scratch_in_place(shape));
}

void forward(const AttentionForward& args, const AttentionTask* tasks, int64_t begin, int64_t end, float* workspace, float* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    if (attention_in_place(args.shape, tasks[i].q_end - tasks[i].q_begin)) task_in_place(args, tasks[i], workspace, scratch);
    else Forward(args, tasks[i], workspace, scratch).run();
  }
}

void forward_merge(const AttentionForward& args, const AttentionTask* parts, const AttentionMerge* merges, int64_t begin, int64_t end,
                   const float* workspace) {
  const HeadLayout head(args.shape.head_dim);
  const int64_t group = args.shape.heads / args.shape.kv_heads;
  float values[256 + F::W];
  for (int64_t m = begin; m < end; ++m) {
    const AttentionTask* part = parts + merges[m].first;
    const int64_t stack = (part->q_end - part->q_begin) * group, count = merges[m].count;
    for (int64_t kv_head = part->kv_head; kv_head < part->kv_head_end; ++kv_head)
      for (int64_t i = 0; i < stack; ++i) {
        const auto partial = [&](int64_t p) { return Partial(const_cast<float*>(workspace), part[p], kv_head, stack, head.dim); };
        Running all;
        all.reset();
        for (int64_t p = 0; p < count; ++p) {
          const float largest = partial(p).state[2 * i];
          if (!(largest <= all.largest[0])) all.largest[0] = largest;
        }
        clear(values, 0, head.padded);
        for (int64_t p = 0; p < count; ++p) {
          const float* state = partial(p).state + 2 * i;
          if (state[1] == 0.0f) continue;  // no visible key in this part
          const float factor = __builtin_exp2f(state[0] - all.largest[0]);
          all.sum[0] += state[1] * factor;
          const float* from = partial(p).values + i * head.dim;
          for (int64_t d = 0; d < head.dim; d += F::W) {
            const int n = static_cast<int>(min(F::W, head.dim - d));
            store(values + d, fma(F(factor), load_n(from + d, n), load(values + d)));
          }
        }
        finish_rows(args, head, part->row, kv_head, StackPlace(part->q_begin, i, group), 1, values, all);
      }
  }
}

}  // namespace graft::GRAFT_ISA
