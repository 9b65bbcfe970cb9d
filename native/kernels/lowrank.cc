#include "lowrank.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

constexpr int kRanks = 8;           // ranks at a time, whose sums fit the registers
constexpr int64_t kRowBlock = 32;   // rows whose gradients fit the L2 cache between the two products

// db_t[0..8, o] += sum over the block's rows of h[i, 0..8] g[i, o]
void add_db(const float* g, int64_t g_stride, const float* h, int64_t r, int64_t rows, int64_t out, float* db_t) {
  for (int64_t o = 0; o < out; o += F::W) {
    const int lanes = out - o < F::W ? static_cast<int>(out - o) : F::W;
    F sum[kRanks];
    for (int j = 0; j < kRanks; j++) sum[j] = load_n(db_t + j * out + o, lanes);
    for (int64_t i = 0; i < rows; i++) {
      const F gradient = load_n(g + i * g_stride + o, lanes);
      for (int j = 0; j < kRanks; j++) sum[j] = fma(gradient, F(h[i * r + j]), sum[j]);
    }
    for (int j = 0; j < kRanks; j++) store_n(db_t + j * out + o, sum[j], lanes);
  }
}

// dh[i, 0..8] = sum over o of g[i, o] b_t[0..8, o], for kRows rows
template <int kRows>
void dh_rows(const float* g, int64_t g_stride, const float* b_t, int64_t r, int64_t out, float* dh) {
  F sum[kRows][kRanks];
  for (auto& row : sum)
    for (F& s : row) s = zero();
  for (int64_t o = 0; o < out; o += F::W) {
    const int lanes = out - o < F::W ? static_cast<int>(out - o) : F::W;
    F gradient[kRows];
    for (int i = 0; i < kRows; i++) gradient[i] = load_n(g + i * g_stride + o, lanes);
    for (int j = 0; j < kRanks; j++) {
      const F b = load_n(b_t + j * out + o, lanes);
      for (int i = 0; i < kRows; i++) sum[i][j] = fma(gradient[i], b, sum[i][j]);
    }
  }
  for (int i = 0; i < kRows; i++) {
    _mm_storeu_ps(dh + i * r, hsum4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
    _mm_storeu_ps(dh + i * r + 4, hsum4(sum[i][4], sum[i][5], sum[i][6], sum[i][7]));
  }
}

void backward(const float* g, int64_t g_stride, const float* h, const float* b_t, int64_t begin, int64_t end, int64_t out, int64_t r, float* dh,
              float* db_t) {
  constexpr int kRows = F::W == 16 ? 3 : 1;  // as many as fit the registers
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t rows = end - first < kRowBlock ? end - first : kRowBlock;
    const float* g_block = g + first * g_stride;
    for (int64_t j = 0; j < r; j += kRanks) {
      add_db(g_block, g_stride, h + first * r + j, r, rows, out, db_t + j * out);
      int64_t i = 0;
      for (; i + kRows <= rows; i += kRows) dh_rows<kRows>(g_block + i * g_stride, g_stride, b_t + j * out, r, out, dh + (first + i) * r + j);
      for (; i < rows; i++) dh_rows<1>(g_block + i * g_stride, g_stride, b_t + j * out, r, out, dh + (first + i) * r + j);
    }
  }
}

// kRows rows of `merge`, in a strip of the columns; `vectors` vectors wide, the last one `lanes` wide.
template <int kRows, int vectors>
void merge_tile(const float* w, const float* a, const float* b, F scaling, int64_t in, int64_t r, int lanes, float* y) {
  F sum[kRows][vectors];
  for (auto& row : sum)
    for (F& s : row) s = zero();
  for (int64_t k = 0; k < r; k++) {
    F from[vectors];
    for (int v = 0; v < vectors; v++) from[v] = v + 1 < vectors ? load(a + k * in + v * F::W) : load_n(a + k * in + v * F::W, lanes);
    for (int i = 0; i < kRows; i++)
      for (int v = 0; v < vectors; v++) sum[i][v] = fma(F(b[i * r + k]), from[v], sum[i][v]);
  }
  for (int i = 0; i < kRows; i++) {
    for (int v = 0; v < vectors; v++) {
      const int n = v + 1 < vectors ? F::W : lanes;
      store_n(y + i * in + v * F::W, fma(scaling, sum[i][v], load_n(w + i * in + v * F::W, n)), n);
    }
  }
}

template <int kRows>
void merge_rows(const float* w, const float* a, const float* b, F scaling, int64_t in, int64_t r, float* y) {
  int64_t j = 0;
  for (; j + 2 * F::W <= in; j += 2 * F::W) merge_tile<kRows, 2>(w + j, a + j, b, scaling, in, r, F::W, y + j);
  for (; j < in; j += F::W) merge_tile<kRows, 1>(w + j, a + j, b, scaling, in, r, in - j < F::W ? static_cast<int>(in - j) : F::W, y + j);
}

void merge(const float* w, const float* a, const float* b, float scaling, int64_t n_rows, int64_t in, int64_t r, float* y) {
  int64_t i = 0;
  for (; i + 4 <= n_rows; i += 4) merge_rows<4>(w + i * in, a, b + i * r, F(scaling), in, r, y + i * in);
  for (; i < n_rows; i++) merge_rows<1>(w + i * in, a, b + i * r, F(scaling), in, r, y + i * in);
}

}  // namespace

extern const LowRankKernels lowrank{backward, merge};

}  // namespace graft::GRAFT_ISA
