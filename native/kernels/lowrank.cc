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

}  // namespace

extern const LowRankKernels lowrank{backward};

}  // namespace graft::GRAFT_ISA
