// Attention over packed rows on the CPU, float32: softmax(scale q kᵀ) v for each row by itself, forward and backward.
//
// Layout. Tokens of all rows lie end to end. q and out are [Nq, H, D], k and v [Nk, K, D]; a token stride is given in floats, a head
// lies D floats behind the one before it. Query head h reads kv head h / (H / K) (grouped-query attention). Row r has the queries
// q_starts[r] .. q_starts[r + 1] and the keys k_starts[r] .. k_ends[r]: pass k_starts + 1 as k_ends where keys are packed too, or other
// ends where each row owns a slot of a larger cache. A row may lack queries, keys or both.
//
// Masks. With nq queries and nk keys, query i stands at the position i + nk - nq of the keys: the last query beside the last key.
// causal: it sees keys j <= position. window w > 0: only keys with position - j < w. A query that sees no key gets out 0, lse -infinity
// and gradients 0.
//
// Method. Keys are visited in blocks with a running maximum and sum per query, and backward recomputes the probabilities from lse:
// FlashAttention-2 (arXiv 2307.08691), algorithm 1 for forward and 2 for backward, with the loops cut for the caches of a CPU. The
// query heads that share a kv head are stacked as more queries of it, so that keys and values are packed once for all of them.
//
// Work. plan_attention_* lists independent tasks, costliest first; what they write never overlaps. Let each thread take the next
// task from a shared counter, and merge when all are done:
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
// Tasks depend on the shape only, and a row's on that row only: results are the same bit for bit with any number of threads, in any
// order, and whatever rows share the batch (the two instruction sets round differently).
#pragma once

#include <cstdint>

#ifndef GRAFT_ISA  // kernel files are compiled for one instruction set and must not share inline code with the rest: see simd.h
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
};

// A matrix [tokens, heads, D]; stride: floats from one token to the next.
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
  float* lse;  // [Nq, H], natural logarithm of the sum of e^score; may be null
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
  int64_t partial;  // where in the workspace an unfinished result goes; -1: the task writes the result itself
  double cost;      // about proportional to its time
};

// Parts [first, first + count) of the plan together make one result.
struct AttentionMerge {
  int64_t first, count;
};

// Tasks are indexed into plan.tasks, merges into plan.merges. workspace: plan.workspace floats, shared by all threads, nothing expected
// in it. scratch: as many floats as *_scratch says, one piece for each thread, nothing expected in it. No alignment is needed.
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

// The keys that a query sees: [begin, end), empty where begin >= end. Both grow with the query.
struct AttentionKeys {
  int64_t begin, end;
};
static inline int64_t attention_queries(const AttentionShape& s, int64_t row) { return s.q_starts[row + 1] - s.q_starts[row]; }
static inline int64_t attention_keys(const AttentionShape& s, int64_t row) { return s.k_ends[row] - s.k_starts[row]; }
static inline AttentionKeys attention_visible(const AttentionShape& s, int64_t row, int64_t query) {
  const int64_t keys = attention_keys(s, row), position = query + keys - attention_queries(s, row);
  const int64_t first = position - s.window + 1;
  return {s.window > 0 && first > 0 ? first : 0, s.causal && position < keys ? position + 1 : keys};
}

// Whether forward reads keys and values where they lie: packing does not pay for few queries. Tasks then take all heads of a range of keys,
// for memory is read at full speed only in long runs. Any instruction set has whole vectors in 16 floats.
static constexpr int64_t kAttentionStackInPlace = 8;
static inline bool attention_in_place(const AttentionShape& s, int64_t queries) {
  return s.head_dim % 16 == 0 && queries * (s.heads / s.kv_heads) <= kAttentionStackInPlace;
}

#ifndef GRAFT_ISA

struct AttentionPlan {
  std::vector<AttentionTask> tasks;  // costliest first
  std::vector<AttentionTask> parts;  // those tasks that leave partial results (and, in backward, the task that they are added to)
  std::vector<AttentionMerge> merges;
  int64_t workspace = 0;  // floats
};

// Stacked queries of a task are cut at multiples of this many tokens, so that register tiles (12 or 6 rows) are full.
inline int64_t attention_token_unit(const AttentionShape& s) {
  const int64_t group = s.heads / s.kv_heads;
  return group % 12 == 0 ? 1 : group % 6 == 0 ? 2 : group % 4 == 0 ? 3 : group % 3 == 0 ? 4 : group % 2 == 0 ? 6 : 12;
}

// Visible pairs of queries [q_begin, q_end) and keys [k_begin, k_end) of a row.
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

// Forward: a task has about 192 stacked queries, since fewer would pack the keys too often. Few queries (decoding) are cut by keys
// instead, so that all threads share the reading of a long cache.
inline AttentionPlan plan_attention_forward(const AttentionShape& s) {
  constexpr int64_t kStacked = 192, kFewStacked = 64;
  AttentionPlan plan;
  const int64_t group = s.heads / s.kv_heads, unit = attention_token_unit(s);
  const auto up = [](int64_t n, int64_t step) { return (n + step - 1) / step * step; };
  const int64_t wanted = up(std::max<int64_t>(1, kStacked / group), unit);
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t queries = attention_queries(s, row);
    const int64_t blocks = std::max<int64_t>(1, (queries + wanted / 2) / wanted);
    const int64_t step = up((queries + blocks - 1) / blocks, unit);
    for (int64_t q = 0; q < queries; q += step) {
      const int64_t q_end = std::min(queries, q + step);
      const int64_t first = attention_visible(s, row, q).begin;
      const int64_t last = std::max(first, attention_visible(s, row, q_end - 1).end);
      const int64_t heads = attention_in_place(s, queries) ? s.kv_heads : 1;  // of a task
      int64_t keys = std::max<int64_t>(1, last - first);                      // of a task
      if (queries * group <= kFewStacked) {
        const int64_t most = heads > 1 && keys <= 1024 ? 128 : 256;
        keys = up((keys + up(keys, most) / most - 1) / (up(keys, most) / most), 32);
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

// Backward: a task owns keys, whose dk and dv it writes. Where a row's keys are cut, the first task writes dq for all queries of the row
// and the others leave theirs in the workspace, to be added by the merge. At most 4 tasks a row and kv head, to bound that memory.
inline AttentionPlan plan_attention_backward(const AttentionShape& s) {
  constexpr int64_t kKeysOfPart = 256, kMostParts = 4;
  AttentionPlan plan;
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t queries = attention_queries(s, row), keys = attention_keys(s, row);
    if (queries == 0 && keys == 0) continue;
    const int64_t parts = std::clamp<int64_t>((keys + kKeysOfPart - 1) / kKeysOfPart, 1, kMostParts);
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
