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

// Factors are read as floats, whatever they are stored as.
struct Floats {
  using Type = float;
  static F all(const Type* p) { return load(p); }
  static F first(const Type* p, int n) { return load_n(p, n); }
};
template <F (*whole)(const uint16_t*)>
struct Halves {
  using Type = uint16_t;
  static F all(const Type* p) { return whole(p); }
  static F first(const Type* p, int n) {
    Type padded[F::W] = {};
    for (int i = 0; i < n; i++) padded[i] = p[i];
    return whole(padded);
  }
};

constexpr int kTokens = F::W == 16 ? 4 : 2;  // tokens at a time, whose sums fit the registers
constexpr int kVectors = 4;                  // ranks of `down` and vectors of columns of `up` at a time

template <typename Stored, int tokens, int ranks>
void down_tile(const float* x, int64_t x_stride, const typename Stored::Type* a, int64_t in, int64_t r, float* h) {
  F sum[tokens][ranks];
  for (auto& row : sum)
    for (F& s : row) s = zero();
  for (int64_t i = 0; i < in; i += F::W) {
    const int lanes = in - i < F::W ? static_cast<int>(in - i) : F::W;
    F token[tokens];
    for (int t = 0; t < tokens; t++) token[t] = lanes == F::W ? load(x + t * x_stride + i) : load_n(x + t * x_stride + i, lanes);
    for (int j = 0; j < ranks; j++) {
      const F factor = lanes == F::W ? Stored::all(a + j * in + i) : Stored::first(a + j * in + i, lanes);
      for (int t = 0; t < tokens; t++) sum[t][j] = fma(token[t], factor, sum[t][j]);
    }
  }
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < ranks; j++) h[t * r + j] = hsum(sum[t][j]);
}

template <typename Stored, int tokens>
void down_tokens(const float* x, int64_t x_stride, const typename Stored::Type* a, int64_t in, int64_t begin, int64_t end, int64_t r, float* h) {
  int64_t j = begin;
  for (; j + kVectors <= end; j += kVectors) down_tile<Stored, tokens, kVectors>(x, x_stride, a + j * in, in, r, h + j);
  for (; j < end; j++) down_tile<Stored, tokens, 1>(x, x_stride, a + j * in, in, r, h + j);
}

template <typename Stored>
void down_of(const float* x, int64_t x_stride, int64_t n, const void* a, int64_t in, int64_t begin, int64_t end, int64_t r, float* h) {
  const auto* factor = static_cast<const typename Stored::Type*>(a);
  int64_t t = 0;
  for (; t + kTokens <= n; t += kTokens) down_tokens<Stored, kTokens>(x + t * x_stride, x_stride, factor, in, begin, end, r, h + t * r);
  for (; t < n; t++) down_tokens<Stored, 1>(x + t * x_stride, x_stride, factor, in, begin, end, r, h + t * r);
}

void down(Factor type, const float* x, int64_t x_stride, int64_t n, const void* a, int64_t in, int64_t begin, int64_t end, int64_t r, float* h) {
  if (type == Factor::F32) down_of<Floats>(x, x_stride, n, a, in, begin, end, r, h);
  else if (type == Factor::F16) down_of<Halves<load_f16>>(x, x_stride, n, a, in, begin, end, r, h);
  else down_of<Halves<load_bf16>>(x, x_stride, n, a, in, begin, end, r, h);
}

// `vectors` vectors of columns, the last one `lanes` wide.
template <typename Stored, int tokens, int vectors>
void up_tile(const float* h, int64_t r, const typename Stored::Type* b_t, int64_t out, int lanes, F scaling, float* y, int64_t y_stride) {
  F sum[tokens][vectors];
  for (auto& row : sum)
    for (F& s : row) s = zero();
  for (int64_t j = 0; j < r; j++) {
    F factor[vectors];
    for (int v = 0; v < vectors; v++) {
      const auto* from = b_t + j * out + v * F::W;
      factor[v] = v + 1 < vectors || lanes == F::W ? Stored::all(from) : Stored::first(from, lanes);
    }
    for (int t = 0; t < tokens; t++)
      for (int v = 0; v < vectors; v++) sum[t][v] = fma(F(h[t * r + j]), factor[v], sum[t][v]);
  }
  for (int t = 0; t < tokens; t++) {
    for (int v = 0; v < vectors; v++) {
      float* to = y + t * y_stride + v * F::W;
      const int n = v + 1 < vectors ? F::W : lanes;
      store_n(to, fma(scaling, sum[t][v], load_n(to, n)), n);
    }
  }
}

template <typename Stored, int tokens>
void up_tokens(const float* h, int64_t r, const typename Stored::Type* b_t, int64_t out, int64_t begin, int64_t end, F scaling, float* y,
               int64_t y_stride) {
  int64_t o = begin;
  for (; o + kVectors * F::W <= end; o += kVectors * F::W)
    up_tile<Stored, tokens, kVectors>(h, r, b_t + o, out, F::W, scaling, y + o, y_stride);
  for (; o < end; o += F::W) {
    const int lanes = end - o < F::W ? static_cast<int>(end - o) : F::W;
    up_tile<Stored, tokens, 1>(h, r, b_t + o, out, lanes, scaling, y + o, y_stride);
  }
}

template <typename Stored>
void up_of(const float* h, int64_t n, int64_t r, const void* b_t, int64_t out, int64_t begin, int64_t end, float scaling, float* y, int64_t y_stride) {
  const auto* factor = static_cast<const typename Stored::Type*>(b_t);
  const F s(scaling);
  int64_t t = 0;
  for (; t + kTokens <= n; t += kTokens) up_tokens<Stored, kTokens>(h + t * r, r, factor, out, begin, end, s, y + t * y_stride, y_stride);
  for (; t < n; t++) up_tokens<Stored, 1>(h + t * r, r, factor, out, begin, end, s, y + t * y_stride, y_stride);
}

void up(Factor type, const float* h, int64_t n, int64_t r, const void* b_t, int64_t out, int64_t begin, int64_t end, float scaling, float* y,
        int64_t y_stride) {
  if (type == Factor::F32) up_of<Floats>(h, n, r, b_t, out, begin, end, scaling, y, y_stride);
  else if (type == Factor::F16) up_of<Halves<load_f16>>(h, n, r, b_t, out, begin, end, scaling, y, y_stride);
  else up_of<Halves<load_bf16>>(h, n, r, b_t, out, begin, end, scaling, y, y_stride);
}

}  // namespace

extern const LowRankKernels lowrank{backward, merge, down, up};

}  // namespace graft::GRAFT_ISA
