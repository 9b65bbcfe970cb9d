// y = x Wᵀ for one to eight rows of activations and weights in blocks: unpacked in registers, multiplied in fp32.
#include "blocks_tables.h"
#include "blocks_unpack.h"

namespace graft::GRAFT_ISA {
namespace {

// The rows of the weight that are summed at the same time. The additions to one sum depend on one another, so about eight independent sums
// are needed; sums and unpacked weights must fit the registers, 16 with AVX2 and 32 with AVX-512.
constexpr int rows_at_once(int m) {
#ifdef __AVX512F__
  return m <= 4 ? 4 : 2;
#else
  return m <= 2 ? 4 : m <= 5 ? 2 : 1;
#endif
}
constexpr int kMaxSums = 16;  // rows_at_once(m) * m

// sums[r][i] (+)= W[row r] · x[i] over `blocks` blocks, r < rows_at_once(M), i < M; with `fresh` they start from zero. `ahead` is the address
// to prefetch meanwhile: the processor's panel_row prefetcher does not follow several short rows at a time, which halves the speed from memory.
template <BlockFormat format, int M>
void add_blocks(const uint8_t* w, int64_t row_bytes, const float* x, int64_t x_stride, int64_t blocks, const uint8_t* ahead, bool fresh,
                F* in_out) {
  using U = Unpacker<format>;
  constexpr int R = rows_at_once(M);
  static_assert(R * M <= kMaxSums);
  F sums[R][M];
  const float* xs[M];
  // All loops over sums are unrolled; otherwise the sums would not stay in registers.
#pragma GCC unroll 16
  for (int k = 0; k < R * M; ++k) sums[k / M][k % M] = fresh ? zero() : in_out[k];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) xs[i] = x + i * x_stride;

  for (; blocks > 0; --blocks, w += U::bytes, ahead += R * U::bytes) {
#pragma GCC unroll 16
    for (int line = 0; line < R * U::bytes; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
    typename U::State states[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) states[r].prepare(w + r * row_bytes);
#pragma GCC unroll 1
    for (int s = 0; s < U::parts; ++s) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        U::part(states[r], w + r * row_bytes, s, [&](int j, F weights) __attribute__((always_inline)) {
#pragma GCC unroll 8
          for (int i = 0; i < M; ++i) sums[r][i] = fma(weights, load(xs[i] + j), sums[r][i]);
        });
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) xs[i] += U::elements;
  }
#pragma GCC unroll 16
  for (int k = 0; k < R * M; ++k) in_out[k] = sums[k / M][k % M];
}

// Adds the lanes of each sum and writes or adds the results to y, whose columns are rows of the weight. Always four sums at a time, even
// where there are fewer: the result of a row must not depend on the other rows.
template <int M> void write_sums(const F* sums, float* y, int64_t y_stride, int64_t rows, bool accumulate) {
  constexpr int R = rows_at_once(M);
  alignas(16) float added[(R * M + 3) / 4 * 4] = {};
#pragma GCC unroll 4
  for (int i = 0; i < R * M; i += 4) {
    const auto sum = [&](int k) __attribute__((always_inline)) { return i + k < R * M ? sums[i + k] : zero(); };
    _mm_store_ps(added + i, hsum4(sum(0), sum(1), sum(2), sum(3)));
  }
  if (M == 1 && rows == 4) {
    const __m128 four = _mm_load_ps(added);
    _mm_storeu_ps(y, accumulate ? _mm_add_ps(_mm_loadu_ps(y), four) : four);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      float& out = y[i * y_stride + r];
      out = accumulate ? out + added[r * M + i] : added[r * M + i];
    }
  }
}

// The part of the product that depends on the format and the number of activation rows.
struct Kernel {
  decltype(&add_blocks<BlockFormat::F32, 1>) add;
  decltype(&write_sums<1>) write;
  int rows;             // rows_at_once
  int elements, bytes;  // of the block that add processes
  int number_bytes;     // of one number where the format has no blocks, else 0
};

template <BlockFormat format, int M> constexpr Kernel make_kernel() {
  using U = Unpacker<format>;
  constexpr BlockLayout layout = block_layout(format);
  return {add_blocks<format, M>, write_sums<M>, rows_at_once(M), U::elements, U::bytes, layout.elements == 1 ? layout.bytes : 0};
}

Kernel kernel_for(BlockFormat format, int64_t m) {
  Kernel kernel = {};
  with_format(format, [&](auto tag) __attribute__((always_inline)) {
    constexpr BlockFormat f = decltype(tag)::value;
    static constexpr Kernel kernels[kMatvecMaxRows] = {make_kernel<f, 1>(), make_kernel<f, 2>(), make_kernel<f, 3>(), make_kernel<f, 4>(),
                                                       make_kernel<f, 5>(), make_kernel<f, 6>(), make_kernel<f, 7>(), make_kernel<f, 8>()};
    kernel = kernels[m - 1];
  });
  return kernel;
}

struct Product {
  Kernel kernel;
  const uint8_t* w;
  int64_t row_bytes;
  int64_t blocks, pass;  // blocks of one row, and blocks of one pass
  int64_t rest;          // numbers after the last whole block
  const float* x;
  int64_t m, x_stride;
  float* y;
  int64_t y_stride;
  bool accumulate;
};

constexpr int64_t kPrefetchBytes = 1024;  // after the current rows: about the latency of memory

// The activations of one pass must fit an L1 cache of 32 KiB together with the weights; otherwise each row would read them from L2 again,
// which is fast enough for one FMA a cycle at best.
constexpr int64_t kPassBytes = 24 * 1024;
constexpr int kPanelSums = 64;  // the sums that are stored between passes

// Adds the numbers after the last whole block: both factors are padded with zeros.
void add_rest(const Product& p, const uint8_t* w, int64_t row_bytes, F* sums) {
  const Kernel& k = p.kernel;
  alignas(64) float x[kMatvecMaxRows * 32] = {};
  alignas(64) uint8_t padded[4 * 32 * sizeof(float)] = {};
  for (int64_t i = 0; i < p.m; ++i) __builtin_memcpy(x + 32 * i, p.x + i * p.x_stride + p.blocks * k.elements, p.rest * sizeof(float));
  for (int r = 0; r < k.rows; ++r) __builtin_memcpy(padded + r * k.bytes, w + r * row_bytes + p.blocks * k.bytes, p.rest * k.number_bytes);
  k.add(padded, k.bytes, x, 32, 1, padded, false, sums);
}

// Multiplies `rows` rows from `row` on: a multiple of the rows of the kernel, or a single row, which it then sums several times.
void multiply_panel(const Product& p, int64_t row, int64_t rows) {
  const Kernel& k = p.kernel;
  const uint8_t* w = p.w + row * p.row_bytes;
  const int64_t stride = rows < k.rows ? 0 : p.row_bytes;
  F sums[kPanelSums];
  if (p.pass >= p.blocks) {
    for (int64_t r = 0; r < rows; r += k.rows) {
      const uint8_t* panel_row = w + r * p.row_bytes;
      k.add(panel_row, stride, p.x, p.x_stride, p.blocks, panel_row + k.rows * p.row_bytes + kPrefetchBytes, true, sums + r * p.m);
    }
  } else {
    const uint8_t* ahead = w + rows * p.row_bytes + kPrefetchBytes;
    for (int64_t begin = 0; begin < p.blocks; begin += p.pass) {
      const int64_t n = p.blocks - begin < p.pass ? p.blocks - begin : p.pass;
      for (int64_t r = 0; r < rows; r += k.rows, ahead += k.rows * n * k.bytes) {
        k.add(w + r * p.row_bytes + begin * k.bytes, stride, p.x + begin * k.elements, p.x_stride, n, ahead, begin == 0, sums + r * p.m);
      }
    }
  }
  for (int64_t r = 0; r < rows; r += k.rows) {
    if (p.rest != 0) add_rest(p, w + r * p.row_bytes, stride, sums + r * p.m);
    k.write(sums + r * p.m, p.y + row + r, p.y_stride, rows < k.rows ? rows : k.rows, p.accumulate);
  }
}

}  // namespace

void block_matvec(BlockFormat format, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* x, int64_t m,
                  int64_t x_stride, float* y, int64_t y_stride, bool accumulate) {
  const BlockLayout layout = block_layout(format);
  const Kernel k = kernel_for(format, m);
  const int64_t blocks_in_cache = kPassBytes / (m * k.elements * static_cast<int64_t>(sizeof(float)));
  const Product p = {.kernel = k,
                     .w = static_cast<const uint8_t*>(src),
                     .row_bytes = in / layout.elements * layout.bytes,
                     .blocks = in / k.elements,
                     .pass = blocks_in_cache > 0 ? blocks_in_cache : 1,
                     .rest = in % k.elements,
                     .x = x,
                     .m = m,
                     .x_stride = x_stride,
                     .y = y,
                     .y_stride = y_stride,
                     .accumulate = accumulate};
  const int64_t panel = kPanelSums / (k.rows * m) * k.rows, panel_end = row_end - (row_end - row_begin) % k.rows;
  for (int64_t row = row_begin; row < panel_end; row += panel) multiply_panel(p, row, panel_end - row < panel ? panel_end - row : panel);
  for (int64_t row = panel_end; row < row_end; ++row) multiply_panel(p, row, 1);
}

}  // namespace graft::GRAFT_ISA
