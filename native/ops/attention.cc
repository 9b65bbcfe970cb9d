#include "kernels/attention.h"
#include "kernels/rope.h"

#include "shared.h"

namespace graft {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const AttentionKernels& attention_kernels() { return pick(avx512::attention, avx2::attention); }

// Runs the tasks in all threads, which take them from a shared counter, the most expensive first: so rows of different lengths load the
// threads evenly.
template <typename Run>
void run_tasks(int64_t tasks, int64_t scratch_floats, Run run) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    Tensor scratch = at::empty({scratch_floats}, at::kFloat);
    float* memory = scratch.mutable_data_ptr<float>();
    for (int64_t i; (i = next.fetch_add(1)) < tasks;) run(i, memory);
  };
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) work();
  });
}

struct Rows {
  std::vector<int64_t> q_starts, k_starts, k_ends;
  Tensor pages = {};  // int64; undefined: keys are where k_starts and k_ends say
  int64_t page_size = 0;

  AttentionShape shape(const Tensor& q, const Tensor& k, bool causal, int64_t window) const {
    return {static_cast<int64_t>(q_starts.size()) - 1, q_starts.data(), k_starts.data(), k_ends.data(), q.size(1), k.size(1), q.size(2), causal, window,
            pages.defined() ? pages.const_data_ptr<int64_t>() : nullptr, page_size};
  }
};

ConstRows reading(const Tensor& x) { return {x.const_data_ptr<float>(), x.stride(0)}; }
MutableRows writing(Tensor& x) { return {x.mutable_data_ptr<float>(), x.stride(0)}; }

void check(const Tensor& q, const Tensor& k, const Tensor& v, const Rows& rows) {
  check_float(q, "q");
  check_float(k, "k");
  check_float(v, "v");
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && k.sizes() == v.sizes() && q.size(2) == k.size(2) && q.size(1) % k.size(1) == 0 && q.size(2) <= 256,
              "q must have the shape [n, H, D], k and v [m, K, D] with K a divisor of H and D at most 256, got ", q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  const size_t count = rows.q_starts.size() - 1;
  TORCH_CHECK(!rows.q_starts.empty() && rows.k_starts.size() == count && rows.k_ends.size() == count, "q_starts must have one entry more than k_starts and k_ends, got ", rows.q_starts.size(), ", ", rows.k_starts.size(), ", ", rows.k_ends.size());
  TORCH_CHECK(rows.q_starts.front() == 0 && rows.q_starts.back() == q.size(0), "q_starts must begin with 0 and end with the ", q.size(0), " tokens of q");
  int64_t slots = k.size(0);
  if (rows.pages.defined()) {
    TORCH_CHECK(rows.pages.scalar_type() == at::kLong && rows.pages.dim() == 1 && rows.pages.is_contiguous() && rows.page_size > 0,
                "pages must be int64 [n] and contiguous, and page_size above 0");
    const int64_t* pages = rows.pages.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows.pages.numel(); i++)
      TORCH_CHECK(0 <= pages[i] && (pages[i] + 1) * rows.page_size <= k.size(0), "page ", pages[i], " is outside of k");
    slots = rows.pages.numel() * rows.page_size;
  }
  for (size_t r = 0; r < count; r++) {
    TORCH_CHECK(rows.q_starts[r] <= rows.q_starts[r + 1] && 0 <= rows.k_starts[r] && rows.k_starts[r] <= rows.k_ends[r] && rows.k_ends[r] <= slots,
                "the tokens of row ", r, " are outside of q or k");
  }
}

Tensor forward_pass(const Tensor& q, const Tensor& k, const Tensor& v, const Rows& rows, double scale, bool causal, int64_t window, float* lse) {
  Tensor out = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
  const AttentionForward args{rows.shape(q, k, causal, window), static_cast<float>(scale), reading(q), reading(k), reading(v), writing(out), lse};
  const AttentionPlan plan = plan_attention_forward(args.shape);
  Tensor workspace = at::empty({plan.workspace}, at::kFloat);
  float* shared = workspace.mutable_data_ptr<float>();
  const int64_t count = static_cast<int64_t>(plan.tasks.size());
  run_tasks(count, attention_kernels().forward_scratch(args.shape, plan.tasks.data(), count),
            [&](int64_t i, float* scratch) { attention_kernels().forward(args, plan.tasks.data(), i, i + 1, shared, scratch); });
  attention_kernels().forward_merge(args, plan.parts.data(), plan.merges.data(), 0, static_cast<int64_t>(plan.merges.size()), shared);
  return out;
}

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const std::vector<int64_t>& q_starts,
                        const std::vector<int64_t>& k_starts, const std::vector<int64_t>& k_ends, double scale, bool causal, int64_t window) {
    Rows rows{q_starts, k_starts, k_ends};
    check(q_in, k_in, v_in, rows);
    const Tensor q = rows_of_heads(q_in), k = rows_of_heads(k_in), v = rows_of_heads(v_in);
    const bool record = q.requires_grad() || k.requires_grad() || v.requires_grad();
    Tensor lse = record ? at::empty({q.size(0), q.size(1)}, q.options()) : Tensor();
    const Tensor out = forward_pass(q, k, v, rows, scale, causal, window, record ? lse.mutable_data_ptr<float>() : nullptr);
    if (record) {
      ctx->save_for_backward({q, k, v, out, lse});
      ctx->saved_data["q_starts"] = q_starts;
      ctx->saved_data["k_starts"] = k_starts;
      ctx->saved_data["k_ends"] = k_ends;
      ctx->saved_data["scale"] = scale;
      ctx->saved_data["causal"] = causal;
      ctx->saved_data["window"] = window;
    }
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &lse = saved[4];
    const Tensor dout = rows_of_heads(grads[0]);
    const Rows rows{ctx->saved_data["q_starts"].toIntVector(), ctx->saved_data["k_starts"].toIntVector(), ctx->saved_data["k_ends"].toIntVector()};
    Tensor dq = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
    // Keys of no row (the empty slots of a cache) get the gradient zero.
    const bool covers = !rows.k_starts.empty() && rows.k_starts.front() == 0 && rows.k_ends.back() == k.size(0) &&
                        std::equal(rows.k_ends.begin(), rows.k_ends.end() - 1, rows.k_starts.begin() + 1);
    Tensor dk = covers ? at::empty({k.size(0), k.size(1), k.size(2)}, k.options()) : at::zeros({k.size(0), k.size(1), k.size(2)}, k.options());
    Tensor dv = covers ? at::empty_like(dk) : at::zeros_like(dk);
    const AttentionBackward args{rows.shape(q, k, ctx->saved_data["causal"].toBool(), ctx->saved_data["window"].toInt()),
                                 static_cast<float>(ctx->saved_data["scale"].toDouble()),
                                 reading(q), reading(k), reading(v), reading(out), reading(dout),
                                 lse.const_data_ptr<float>(),
                                 writing(dq), writing(dk), writing(dv)};
    const AttentionPlan plan = plan_attention_backward(args.shape);
    Tensor workspace = at::empty({plan.workspace}, at::kFloat);
    float* shared = workspace.mutable_data_ptr<float>();
    run_tasks(static_cast<int64_t>(plan.tasks.size()), attention_kernels().backward_scratch(args.shape),
              [&](int64_t i, float* scratch) { attention_kernels().backward(args, plan.tasks.data(), i, i + 1, shared, scratch); });
    attention_kernels().backward_merge(args, plan.parts.data(), plan.merges.data(), 0, static_cast<int64_t>(plan.merges.size()), shared);
    return {dq, dk, dv, {}, {}, {}, {}, {}, {}};
  }
};

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, at::IntArrayRef q_starts, at::IntArrayRef k_starts, at::IntArrayRef k_ends,
                 double scale, bool causal, int64_t window, const std::optional<Tensor>& pages, int64_t page_size) {
  if (pages) {
    TORCH_CHECK(!at::GradMode::is_enabled() || !(q.requires_grad() || k.requires_grad() || v.requires_grad()), "attention over pages has no gradient");
    const Rows rows{q_starts.vec(), k_starts.vec(), k_ends.vec(), *pages, page_size};
    check(q, k, v, rows);
    return forward_pass(rows_of_heads(q), rows_of_heads(k), rows_of_heads(v), rows, scale, causal, window, nullptr);
  }
  return Attention::apply(q, k, v, q_starts.vec(), k_starts.vec(), k_ends.vec(), scale, causal, window);
}

// Attention as decoding needs it, in one call: rotates q and k, writes k and v to slots of a pool, and attends over its pages. q [n, H D], k and
// v [n, K D], whose rows may be strided; pool_k and pool_v [slots, K, D]; cos and sin [n, half] or none.
Tensor pooled_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                        const Tensor& pool_k, const Tensor& pool_v, const Tensor& slots, at::IntArrayRef q_starts, at::IntArrayRef k_starts,
                        at::IntArrayRef k_ends, const Tensor& pages, int64_t page_size, double scale, bool causal, int64_t window) {
  check_float(q, "q");
  check_float(k, "k");
  check_float(v, "v");
  for (const Tensor* tensor : {&q, &k, &v, &pool_k, &pool_v}) check_frozen(*tensor, "an input of pooled attention");
  TORCH_CHECK(pool_k.dim() == 3 && pool_k.sizes() == pool_v.sizes() && pool_k.is_contiguous() && pool_v.is_contiguous(), "the pool must be contiguous [slots, K, D], got ",
              pool_k.sizes(), " and ", pool_v.sizes());
  const int64_t n = q.size(0), kv_heads = pool_k.size(1), dim = pool_k.size(2), row = kv_heads * dim;
  TORCH_CHECK(q.dim() == 2 && q.size(1) % dim == 0 && k.dim() == 2 && k.size(0) == n && k.size(1) == row && k.sizes() == v.sizes() && q.stride(1) == 1 && k.stride(1) == 1 && v.stride(1) == 1,
              "q must have the shape [n, H D], k and v [n, K D], got ", q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  TORCH_CHECK(slots.scalar_type() == at::kLong && slots.is_contiguous() && slots.numel() == n, "slots must be int64 [n]");
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; i++) TORCH_CHECK(0 <= slot[i] && slot[i] < pool_k.size(0), "slot ", slot[i], " is outside of the pool");
  const int64_t half = cos ? cos->size(1) : 0, heads = q.size(1) / dim;
  if (cos) {
    check_float(*cos, "cos");
    TORCH_CHECK(sin && cos->dim() == 2 && cos->sizes() == sin->sizes() && cos->size(0) == n && 2 * half <= dim && cos->is_contiguous() && sin->is_contiguous(),
                "cos and sin must be contiguous [n, half]");
  }
  Tensor rotated = cos ? at::empty({n, heads, dim}, q.options()) : q.view({n, heads, dim});
  const auto& rope = pick(avx512::rope, avx2::rope);
  float *to_k = pool_k.mutable_data_ptr<float>(), *to_v = pool_v.mutable_data_ptr<float>();
  at::parallel_for(0, n, grain(q.size(1) + 2 * row), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* key = k.const_data_ptr<float>() + i * k.stride(0);
      std::memcpy(to_v + slot[i] * row, v.const_data_ptr<float>() + i * v.stride(0), row * sizeof(float));
      if (!cos) {
        std::memcpy(to_k + slot[i] * row, key, row * sizeof(float));
        continue;
      }
      const float *c = cos->const_data_ptr<float>() + i * half, *s = sin->const_data_ptr<float>() + i * half;
      rope.rotate(key, 0, c, s, false, 0, 1, kv_heads, dim, half, to_k + slot[i] * row);
      rope.rotate(q.const_data_ptr<float>() + i * q.stride(0), 0, c, s, false, 0, 1, heads, dim, half, rotated.mutable_data_ptr<float>() + i * heads * dim);
    }
  });
  const Rows rows{q_starts.vec(), k_starts.vec(), k_ends.vec(), pages, page_size};
  check(rotated, pool_k, pool_v, rows);
  return forward_pass(rows_of_heads(rotated), pool_k, pool_v, rows, scale, causal, window, nullptr).view({n, heads * dim});
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("pooled_attention(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor(a!) pool_k, Tensor(b!) pool_v, Tensor slots, int[] q_starts, "
        "int[] k_starts, int[] k_ends, Tensor pages, int page_size, float scale, bool causal, int window) -> Tensor",
        pooled_attention);
  m.def("attention(Tensor q, Tensor k, Tensor v, int[] q_starts, int[] k_starts, int[] k_ends, float scale, bool causal=True, int window=0, Tensor? pages=None, "
        "int page_size=0) -> Tensor",
        attention);
}

}  // namespace
}  // namespace graft
