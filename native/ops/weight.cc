// Products with one weight. A quantised weight is frozen: it is unpacked where a product needs it, and never stored unpacked.
#include "product.h"

#include <torch/csrc/autograd/graph_task.h>

namespace graft {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

int64_t Weight::in() const {
  if (dense()) return tensor.size(1);
  const BlockLayout layout = block_layout(block_format());
  return tensor.size(1) / layout.bytes * layout.elements;
}

Weight weight_of(const Tensor& tensor, int64_t format) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.is_contiguous(), "a weight must be a contiguous matrix, got ", tensor.sizes());
  TORCH_CHECK(!tensor.is_meta(), "the weight is with other processes: it is here only while its block runs");
  if (format < 0) return {tensor, -1};
  const BlockLayout layout = block_layout(static_cast<BlockFormat>(format));
  TORCH_CHECK(layout.bytes > 0, "no block format has the number ", format);
  TORCH_CHECK(tensor.scalar_type() == at::kByte, "a weight in blocks must be uint8, got ", tensor.scalar_type());
  TORCH_CHECK(tensor.size(1) % layout.bytes == 0, "a row of ", tensor.size(1), " bytes is not a whole number of blocks of ", layout.bytes);
  return {tensor, format};
}

namespace {

// The name of a format in native/cuda/dequantize.cu; empty for numbers without blocks.
std::string block_name(BlockFormat format) {
  switch (format) {
    case BlockFormat::Q4_0: return "Q4_0";
    case BlockFormat::Q4_1: return "Q4_1";
    case BlockFormat::Q5_0: return "Q5_0";
    case BlockFormat::Q5_1: return "Q5_1";
    case BlockFormat::Q8_0: return "Q8_0";
    case BlockFormat::Q4_K: return "Q4_K";
    case BlockFormat::Q5_K: return "Q5_K";
    case BlockFormat::Q6_K: return "Q6_K";
    case BlockFormat::NF4: return "NF4";
    case BlockFormat::F32:
    case BlockFormat::F16:
    case BlockFormat::BF16: return "";
    default: return "Integer<" + std::to_string(static_cast<int>(format) - 100) + ">";
  }
}

Tensor cuda_rows(const Weight& w, int64_t first, int64_t count, at::ScalarType type) {
  const Tensor packed = w.tensor.narrow(0, first, count);
  const BlockFormat format = w.block_format();
  const std::string name = block_name(format);
  if (name.empty()) return packed.view(format == BlockFormat::F32 ? at::kFloat : format == BlockFormat::F16 ? at::kHalf : at::kBFloat16).to(type);
  const Tensor to = at::empty({count, w.in()}, packed.options().dtype(type));
  const int64_t eights = to.numel() / 8;
  launch(packed, "dequantize.cu", instance_of("dequantize", {name, number_name(type)}), {ceil_div(eights, 256)}, 256, memory_of(packed), eights, memory_of(to));
  return to;
}

}  // namespace

Tensor Weight::rows(int64_t first, int64_t count, at::ScalarType type) const {
  if (dense()) return tensor.narrow(0, first, count);
  if (runs_cuda_kernels(tensor)) return cuda_rows(*this, first, count, type);
  Tensor unpacked = at::empty({count, in()}, type);
  const auto& kernels = block_kernels();
  const void* source = tensor.const_data_ptr();
  const int64_t width = in();
  if (type == at::kBFloat16) {
    auto* to = static_cast<uint16_t*>(unpacked.mutable_data_ptr());
    at::parallel_for(0, count, grain(width), [&](int64_t begin, int64_t end) {
      kernels.dequantize_bf16(block_format(), source, first + begin, end - begin, width, to + begin * width, width);
    });
    return unpacked;
  }
  float* to = unpacked.mutable_data_ptr<float>();
  at::parallel_for(0, count, grain(width), [&](int64_t begin, int64_t end) {
    kernels.dequantize_f32(block_format(), source, first + begin, end - begin, width, to + begin * width, width);
  });
  return unpacked;
}

namespace {

// x, the bias and a dense weight get a gradient; blocks are frozen.
struct BlockLinear : torch::autograd::Function<BlockLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, int64_t format, const std::optional<Tensor>& bias) {
    save_weight(ctx, weight_of(weight, format), bias);
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor()});  // for the gradient of the weight only
    ctx->saved_data["dx"] = x.requires_grad();
    return product(x, weight_of(weight, format), bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor x = ctx->get_saved_variables()[0], &g = grads[0];
    const Tensor dx = ctx->saved_data["dx"].toBool() ? product_backward(g, saved_weight(ctx)) : Tensor();
    return {dx, weight_gradient(g, x), {}, bias_gradient(ctx, g)};
  }
};

Tensor block_linear(const Tensor& x, const Tensor& weight, int64_t format, const std::optional<Tensor>& bias) {
  return BlockLinear::apply(x, weight, format, bias);
}

// The products of x [n, in] with several frozen weights, as of block_linear: one [n, out] for each. biases: none, or one for each.
std::vector<Tensor> block_linears(const Tensor& x, at::TensorList weights, at::IntArrayRef formats, at::TensorList biases) {
  TORCH_CHECK(weights.size() == formats.size() && (biases.empty() || biases.size() == weights.size()), "weights, formats and biases must be as many");
  TORCH_CHECK(x.dim() == 2, "x must have the shape [n, in], got ", x.sizes());
  check_frozen(x, "x");
  std::vector<Weight> all;
  for (size_t i = 0; i < weights.size(); i++) {
    check_frozen(weights[i], "a weight");
    if (!biases.empty()) check_frozen(biases[i], "a bias");
    all.push_back(weight_of(weights[i], formats[i]));
  }
  return products(x, all, biases);
}

// The dense gradient of a table, a leaf, that waits for its other terms in a backward pass of this thread, and the number of that pass.
thread_local struct {
  const c10::TensorImpl* table = nullptr;
  int pass = -1;
  c10::weak_intrusive_ptr<c10::TensorImpl> gradient{c10::intrusive_ptr<c10::TensorImpl>()};
} waiting;

// Returns that gradient, to add to; undefined where there is none that only the pass refers to.
Tensor waiting_gradient(int64_t table) {
  if (!table || reinterpret_cast<int64_t>(waiting.table) != table || waiting.pass != torch::autograd::get_current_graph_task_id()) return {};
  const auto gradient = waiting.gradient.lock();
  return gradient && gradient.use_count() == 2 ? Tensor(gradient) : Tensor();
}

// A table that is also the head's gets the gradient of its lookups added to the head's: a second one of its size would be the largest tensor
// of the pass.
struct DenseEmbedding : torch::autograd::Function<DenseEmbedding> {
  static Tensor forward(AutogradContext* ctx, const Tensor& table, const Tensor& ids) {
    ctx->save_for_backward({ids});
    ctx->saved_data["rows"] = table.size(0);
    ctx->saved_data["table"] = reinterpret_cast<int64_t>(table.is_leaf() ? table.unsafeGetTensorImpl() : nullptr);  // which the graph keeps alive
    return at::embedding(table, ids);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor ids = ctx->get_saved_variables()[0], &g = grads[0];
    if (Tensor gradient = waiting_gradient(ctx->saved_data["table"].toInt()); gradient.defined()) {
      gradient.index_add_(0, ids.reshape(-1), g.reshape({-1, g.size(-1)}));
      return {Tensor(), {}};
    }
    return {at::embedding_dense_backward(g, ids, ctx->saved_data["rows"].toInt(), -1, false), {}};
  }
};

// Returns the rows of a table: ids [n] => [n, in]. A dense table gets a gradient; blocks are frozen.
Tensor block_embedding(const Tensor& weight, int64_t format, const Tensor& ids) {
  if (format < 0) return DenseEmbedding::apply(weight, ids);
  const Weight table = weight_of(weight, format);
  TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == at::kLong && ids.is_contiguous(), "ids must be a contiguous int64 vector, got ", ids.scalar_type(), ids.sizes());
  const int64_t* rows = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.size(0); i++) {
    TORCH_CHECK_INDEX(rows[i] >= 0 && rows[i] < table.out(), "id ", rows[i], " is outside the table of ", table.out(), " rows");
  }
  Tensor out = at::empty({ids.size(0), table.in()}, at::kFloat);
  block_kernels().gather_f32(table.block_format(), weight.const_data_ptr(), rows, ids.size(0), table.in(), out.mutable_data_ptr<float>(), table.in());
  return out;
}

// dtype: float32, the default, or bfloat16
Tensor dequantize(const Tensor& weight, int64_t format, std::optional<at::ScalarType> dtype) {
  const at::ScalarType type = dtype.value_or(at::kFloat);
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "blocks are unpacked to float32 or bfloat16, not to ", type);
  return weight_of(weight, format).all(type);
}

// Quantises a matrix: [out, in] float32 => [out, bytes of a row].
Tensor quantize(const Tensor& weight, int64_t format) {
  check_float(weight, "weight");
  TORCH_CHECK(weight.dim() == 2, "weight must be a matrix, got ", weight.sizes());
  const auto block_format = static_cast<BlockFormat>(format);
  const BlockLayout layout = block_layout(block_format);
  TORCH_CHECK(layout.elements > 0, "no block format has the number ", format);
  const int64_t in = weight.size(1), row_bytes = in / layout.elements * layout.bytes;
  TORCH_CHECK(in % layout.elements == 0, "a width of ", in, " is not a multiple of the block size ", layout.elements);
  const Tensor source = weight.contiguous();
  Tensor blocks = at::empty({weight.size(0), row_bytes}, at::kByte);
  TORCH_CHECK(format < static_cast<int64_t>(BlockFormat::INT2), "integers are packed by pack_integers");
  std::atomic<int64_t> refused = weight.size(0);  // a row that cannot be quantised
  at::parallel_for(0, weight.size(0), grain(in), [&](int64_t begin, int64_t end) {
    const int64_t done = begin + block_kernels().quantize(block_format, source.const_data_ptr<float>() + begin * in, in, end - begin, in,
                                                          blocks.mutable_data_ptr<uint8_t>() + begin * row_bytes);
    if (done < end) refused = done;
  });
  TORCH_CHECK(refused == weight.size(0), "row ", refused.load(), " holds a number that is not finite, or too large for the scale of its block");
  return blocks;
}

TORCH_LIBRARY_FRAGMENT(graft, m) {
  m.def("block_linear(Tensor x, Tensor weight, int format, Tensor? bias=None) -> Tensor", block_linear);
  m.def("block_linears(Tensor x, Tensor[] weights, int[] formats, Tensor[] biases) -> Tensor[]", block_linears);
  m.def("block_embedding(Tensor weight, int format, Tensor ids) -> Tensor", block_embedding);
  m.def("dequantize(Tensor weight, int format, ScalarType? dtype=None) -> Tensor", dequantize);
  m.def("quantize(Tensor weight, int format) -> Tensor", quantize);
}

}  // namespace

void gradient_waits(const c10::TensorImpl* table, const Tensor& gradient) {
  waiting.table = table;
  waiting.pass = torch::autograd::get_current_graph_task_id();
  waiting.gradient = gradient.getIntrusivePtr();
}

}  // namespace graft
