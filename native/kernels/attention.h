// Attention over packed rows on the CPU, float32: softmax(scale q kᵀ) v within each row, forward and backward.
//
// Layout. The tokens of all rows are concatenated. q and out are [Nq, H, D], k and v [Nk, K, D]; the token stride is in floats, the heads
// of a token are contiguous. Query head h uses kv head h / (H / K) (grouped-query attention). Row r has the queries
// q_starts[r] .. q_starts[r + 1] and the keys k_starts[r] .. k_ends[r]: pass k_starts + 1 as k_ends where keys are packed too, or other
// ends where each row has a slot of a larger cache. A row may have no queries, no keys, or neither.
//
// Pages. With a page table the offsets of keys count slots: slot s is token pages[s / page_size] page_size + s % page_size of k and v.
// Forward only.
//
// Masks. With nq queries and nk keys, query i is at the position i + nk - nq of the keys: the last query is at the last key.
// causal: it attends to keys j <= position. window w > 0: only keys with position - j < w. A query without a visible key gets out 0,
// lse -infinity and gradients 0.
//
// Method. Keys are processed in blocks with a running maximum and sum per query, and backward recomputes the probabilities from lse:
// FlashAttention-2 (arXiv 2307.08691), algorithm 1 for forward and 2 for backward, with loops tiled for the caches of a CPU. The
// query heads that share a kv head are stacked as more queries of it, so that keys and values are packed once for all of them.
//
// Tasks. plan_attention_* lists independent tasks, the max_keys expensive first; their outputs never overlap. Each thread takes the next
// task from a shared counter, and the merge follows when all are done:
//
//   AttentionPlan plan = plan_attention_forward(shape);            // the same for all layers of a step
//   std::vector<float> workspace(plan.workspace);                  // one for all threads
//   std::atomic<int64_t> next{0};
//   at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
//     std::vector<float> scratch(kernels.forward_scratch(shape, plan.tasks.data(), plan.tasks.size()));  // one for each thread
//     for (int64_t i; (i = next++) < plan.tasks.size();) kernels.forward(args, plan.tasks.data(), i, i + 1, workspace.data(), scratch.data());
//   });
//   kernels.forward_merge(args, plan.parts.data(), plan.merges.data(), 0, plan.merges.size(), workspace.data());
//
// Tasks depend on the shape only, and those of a row on that row only: results are equal bit for bit with any number of threads, in any
// order, and with any other rows in the batch (the two instruction sets round differently).
#pragma once

#include <cstdint>

#ifndef GRAFT_ISA  // kernel files are compiled for one instruction set and must not share inline code with other files: see simd.h
#include <algorithm>
#include <vector>
#endif

namespace graft {

struct AttentionShape {
  int64_t rows;             // R
  const int64_t* q_starts;  // [R + 1]
  const int64_t* k_starts;  // [R]
  const int64_t* k_ends;    // [R]
  int64_t heads;            // H, a multiple of K
  int64_t kv_heads;         // K
  int64_t head_dim;         // D, 1 to 256
  bool causal;
  int64_t window;  // in tokens; 0: none
  const int64_t* pages = nullptr;  // of the keys; null: they are where their offsets say
  int64_t page_size = 0;
};

// A tensor [tokens, heads, D]; stride: floats from one token to the next.
struct ConstRows {
  const float* data;
  int64_t stride;
};
struct MutableRows {
  float* data;
  int64_t stride;
};

struct AttentionForward {
  AttentionShape shape;
  float scale;  // usually 1 / sqrt(D)
  ConstRows q, k, v;
  MutableRows out;
  float* lse;  // [Nq, H], the natural logarithm of the sum of e^score; may be null
};

struct AttentionBackward {
  AttentionShape shape;
  float scale;
  ConstRows q, k, v, out, dout;
  const float* lse;        // as forward wrote it
  MutableRows dq, dk, dv;  // written, not added to
};

// The queries [q_begin, q_end) of one row, for the query heads of the kv heads [kv_head, kv_head_end), against the keys [k_begin, k_end)
// of that row. Queries and keys count from the row's first.
struct AttentionTask {
  int64_t row;
  int64_t kv_head, kv_head_end;  // one kv head, or all of them where keys are read in place
  int64_t q_begin, q_end;
  int64_t k_begin, k_end;
  int64_t partial;  // offset in the workspace of a partial result; -1: the task writes the final result
  double cost;      // about proportional to its time
};

// The parts [first, first + count) of the plan are merged to one result.
struct AttentionMerge {
  int64_t first, count;
};

// begin and end are indices into plan.tasks or plan.merges. workspace: plan.workspace floats, shared by all threads, uninitialised.
// scratch: as many floats as *_scratch returns, for each thread, uninitialised. No alignment is needed.
struct AttentionKernels {
  int64_t (*forward_scratch)(const AttentionShape& shape, const AttentionTask* tasks, int64_t count);
  void (*forward)(const AttentionForward& args, const AttentionTask* tasks, int64_t begin, int64_t end, float* workspace, float* scratch);
  void (*forward_merge)(const AttentionForward& args, const AttentionTask* parts, const AttentionMerge* merges, int64_t begin, int64_t end,
                        const float* workspace);
  int64_t (*backward_scratch)(const AttentionShape& shape);
  void (*backward)(const AttentionBackward& args, const AttentionTask* tasks, int64_t begin, int64_t end, float* workspace, float* scratch);
  void (*backward_merge)(const AttentionBackward& args, const AttentionTask* parts, const AttentionMerge* merges, int64_t begin, int64_t end,
                         const float* workspace);
};
namespace avx2 {
extern const AttentionKernels attention;
}
namespace avx512 {  // needs avx512f, bw, vl and dq
extern const AttentionKernels attention;
}

// The keys that a query attends to: [begin, end), empty where begin >= end. Both grow with the query.
struct AttentionKeys {
  int64_t begin, end;
};
static inline int64_t attention_queries(const AttentionShape& s, int64_t row) { return s.q_starts[row + 1] - s.q_starts[row]; }
static inline int64_t attention_keys(const AttentionShape& s, int64_t row) { return s.k_ends[row] - s.k_starts[row]; }
// The token of k and v that is key `key` of the row.
static inline int64_t attention_key(const AttentionShape& s, int64_t row, int64_t key) {
  const int64_t slot = s.k_starts[row] + key;
  return s.pages ? s.pages[slot / s.page_size] * s.page_size + slot % s.page_size : slot;
}
// How many keys of the row from `key` on follow one another in k and v, at most `count`.
static inline int64_t attention_adjacent(const AttentionShape& s, int64_t row, int64_t key, int64_t count) {
  if (!s.pages) return count;
  const int64_t left = s.page_size - (s.k_starts[row] + key) % s.page_size;
  return left < count ? left : count;
}
static inline AttentionKeys attention_visible(const AttentionShape& s, int64_t row, int64_t query) {
  const int64_t keys = attention_keys(s, row), position = query + keys - attention_queries(s, row);
  const int64_t first = position - s.window + 1;
  return {s.window > 0 && first > 0 ? first : 0, s.causal && position < keys ? position + 1 : keys};
}

// Whether forward reads keys and values without packing them, which is not worthwhile for few queries. A task then covers all heads of a
// range of keys, because memory is read at full speed only in long runs. 16 floats are whole vectors of either instruction set.
static constexpr int64_t kAttentionStackInPlace = 8;
static inline bool attention_in_place(const AttentionShape& s, int64_t queries) {
  return s.head_dim % 16 == 0 && queries * (s.heads / s.kv_heads) <= kAttentionStackInPlace;
}

#ifndef GRAFT_ISA

struct AttentionPlan {
  std::vector<AttentionTask> tasks;  // the max_keys expensive first
  std::vector<AttentionTask> parts;  // the tasks with partial results (and, in backward, the task to whose result they are added)
  std::vector<AttentionMerge> merges;
  int64_t workspace = 0;  // floats
};

// The stacked queries of a task are a multiple of this many tokens, so that register tiles (12 or 6 rows) are full.
inline int64_t attention_token_unit(const AttentionShape& s) {
  const int64_t group = s.heads / s.kv_heads;
  return group % 12 == 0 ? 1 : group % 6 == 0 ? 2 : group % 4 == 0 ? 3 : group % 3 == 0 ? 4 : group % 2 == 0 ? 6 : 12;
}

// The number of visible pairs of queries [q_begin, q_end) and keys [k_begin, k_end) of a row.
inline double attention_pairs(const AttentionShape& s, int64_t row, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  int64_t pairs = 0;
  for (int64_t i = q_begin; i < q_end; ++i) {
    const AttentionKeys seen = attention_visible(s, row, i);
    pairs += std::max<int64_t>(0, std::min(seen.end, k_end) - std::max(seen.begin, k_begin));
  }
  return static_cast<double>(pairs);
}

inline void attention_sort(std::vector<AttentionTask>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const AttentionTask& a, const AttentionTask& b) { return a.cost > b.cost; });
}

// Forward: a task has about 192 stacked queries; with fewer, the keys would be packed too often. Few queries (decoding) are split by keys
// instead, so that all threads read a part of a long cache.
inline AttentionPlan plan_attention_forward(const AttentionShape& s) {
  constexpr int64_t kStacked = 192, kFewStacked = 64;
  AttentionPlan plan;
  const int64_t group = s.heads / s.kv_heads, unit = attention_token_unit(s);
  const auto up = [](int64_t n, int64_t step) { return (n + step - 1) / step * step; };
  const int64_t target_tokens = up(std::max<int64_t>(1, kStacked / group), unit);
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t queries = attention_queries(s, row);
    const int64_t blocks = std::max<int64_t>(1, (queries + target_tokens / 2) / target_tokens);
    const int64_t step = up((queries + blocks - 1) / blocks, unit);
    for (int64_t q = 0; q < queries; q += step) {
      const int64_t q_end = std::min(queries, q + step);
      const int64_t first = attention_visible(s, row, q).begin;
      const int64_t last = std::max(first, attention_visible(s, row, q_end - 1).end);
      const int64_t heads = attention_in_place(s, queries) ? s.kv_heads : 1;  // of a task
      int64_t keys = std::max<int64_t>(1, last - first);                      // of a task
      if (queries * group <= kFewStacked) {
        const int64_t max_keys = heads > 1 && keys <= 1024 ? 128 : 256;
        keys = up((keys + up(keys, max_keys) / max_keys - 1) / (up(keys, max_keys) / max_keys), 32);
      }
      for (int64_t head = 0; head < s.kv_heads; head += heads) {
        const AttentionMerge parts = {static_cast<int64_t>(plan.parts.size()), std::max<int64_t>(1, (last - first + keys - 1) / keys)};
        for (int64_t k = first; k < last || k == first; k += keys) {
          AttentionTask task{row, head, head + heads, q, q_end, k, std::min(last, k + keys), -1, 0};
          task.cost = static_cast<double>(heads) * (attention_pairs(s, row, q, q_end, k, task.k_end) * group + 16.0 * (task.k_end - k));
          if (parts.count > 1) {
            task.partial = plan.workspace;
            plan.workspace += heads * (q_end - q) * group * (s.head_dim + 2);
            plan.parts.push_back(task);
          }
          plan.tasks.push_back(task);
        }
        if (parts.count > 1) plan.merges.push_back(parts);
      }
    }
  }
  attention_sort(plan.tasks);
  return plan;
}

// Backward: a task covers a range of keys and writes their dk and dv. Where the keys of a row are split, the first task writes dq of all
// queries of the row, and the others write theirs to the workspace, to be added by the merge. At max_keys 4 tasks for each row and kv head, to
// bound that memory.
inline AttentionPlan plan_attention_backward(const AttentionShape& s) {
  constexpr int64_t kKeysOfPart = 256, kMaxParts = 4;
  AttentionPlan plan;
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t queries = attention_queries(s, row), keys = attention_keys(s, row);
    if (queries == 0 && keys == 0) continue;
    const int64_t parts = std::clamp<int64_t>((keys + kKeysOfPart - 1) / kKeysOfPart, 1, kMaxParts);
    const int64_t step = std::max<int64_t>(32, ((keys + parts - 1) / parts + 31) / 32 * 32);
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      const int64_t part_of = static_cast<int64_t>(plan.parts.size());
      for (int64_t k = 0; k < keys || k == 0; k += step) {
        AttentionTask task{row, head, head + 1, 0, queries, k, std::min(keys, k + step), -1, 0};
        if (k > 0) {
          while (task.q_begin < queries && attention_visible(s, row, task.q_begin).end <= k) ++task.q_begin;
          while (task.q_end > task.q_begin && attention_visible(s, row, task.q_end - 1).begin >= task.k_end) --task.q_end;
          task.partial = plan.workspace;
          plan.workspace += (task.q_end - task.q_begin) * group * s.head_dim;
        }
        task.cost = attention_pairs(s, row, task.q_begin, task.q_end, k, task.k_end) * group + 16.0 * (task.k_end - k);
        plan.tasks.push_back(task);
        plan.parts.push_back(task);
      }
      const int64_t count = static_cast<int64_t>(plan.parts.size()) - part_of;
      if (count > 1) plan.merges.push_back({part_of, count});
      else plan.parts.pop_back();
    }
  }
  attention_sort(plan.tasks);
  return plan;
}

#endif

}  // namespace graft
