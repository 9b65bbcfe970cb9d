// Shared code of the attention kernels: the register-blocked product of small matrices, packing, and masking.
// Private to native/kernels/attention*.cc.
//
// A "stack" is the queries of one task: token after token, and within a token the query heads that share the kv head. Scores are in
// units of log 2, because 2^x is cheaper than e^x: queries are multiplied by scale log2(e) when they are packed.
#pragma once

#include "attention.h"
#include "simd.h"

namespace graft::GRAFT_ISA {

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

// A tile of a product is kTileRows x kTileColumns floats in registers: 24 of 32 with AVX-512, 12 of 16 with AVX2. The shape gives two FMAs
// for each broadcast, and enough independent sums to hide the latency of both FMA units.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 12;
#else
inline constexpr int kTileRows = 6;
#endif
inline constexpr int kTileColumns = 2 * F::W;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return max(low, min(x, high)); }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t round_down(int64_t n, int64_t step) { return n / step * step; }

// Row-major c[m][n] (+)= sum over k of a[m][k] b[k][n], m < M, n < V W. Transposed: a[k][m].
template <int M, int V, bool Transposed>
inline void tile(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  F sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[m][v] = zero();
  for (int64_t k = 0; k < depth; ++k) {
    F right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) right[v] = load(b + v * F::W);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const F left(Transposed ? a[m] : a[m * lda]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = fma(left, right[v], sum[m][v]);
    }
    a += Transposed ? lda : 1;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = c + m * ldc + v * F::W;
      store(to, add ? load(to) + sum[m][v] : sum[m][v]);
    }
}

template <int V, bool Transposed>
[[gnu::noinline]] inline void tile_of(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                                      bool add) {
  constexpr int M = kTileRows;
  if (rows > M * 2 / 3) tile<M, V, Transposed>(depth, a, lda, b, ldb, c, ldc, add);
  else if (rows > M / 3) tile<M * 2 / 3, V, Transposed>(depth, a, lda, b, ldb, c, ldc, add);
  else tile<M / 3, V, Transposed>(depth, a, lda, b, ldb, c, ldc, add);
}

// At most kTileRows rows of a product, `columns` (a multiple of W) wide. b is stored in panels of kTileColumns columns, b_panel floats
// apart. The rows of a and c up to a whole tile must be allocated; their values do not matter.
template <bool Transposed>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t b_panel, float* c,
                     int64_t ldc, bool add) {
  int64_t n = 0;
  for (; n + kTileColumns <= columns; n += kTileColumns, b += b_panel) tile_of<2, Transposed>(rows, depth, a, lda, b, ldb, c + n, ldc, add);
  if (n < columns) tile_of<1, Transposed>(rows, depth, a, lda, b, ldb, c + n, ldc, add);
}

// Sizes that follow from the head size.
struct HeadLayout {
  int64_t dim;     // D
  int64_t padded;  // D rounded up to whole vectors; the padding is 0
  int64_t stride;  // of a packed row: not a multiple of 256 bytes, or the rows of a tile would compete for the same sets of L1
  explicit HeadLayout(int64_t d) : dim(d), padded(round_up(d, F::W)), stride(round_up(d, 16)) {
    if (stride % 64 == 0) stride += 16;
  }
};

// Allocates from scratch memory in whole cache lines; without memory it only counts.
struct Arena {
  float* base;
  int64_t used = 0;
  explicit Arena(float* p) : base(p ? p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64 / sizeof(float) : nullptr) {}
  float* take(int64_t floats) {
    float* piece = base ? base + used : nullptr;
    used += round_up(floats, 16);
    return piece;
  }
  int64_t needed() const { return used + 16; }  // 16: to start at a cache line
};

inline void pack_row(const HeadLayout& head, float* to, const float* from, float factor) {
  int64_t d = 0;
  for (; d + F::W <= head.dim; d += F::W) store(to + d, load(from + d) * F(factor));
  if (d < head.padded) store(to + d, load_n(from + d, static_cast<int>(head.dim - d)) * F(factor));
}

inline void unpack_row(const HeadLayout& head, float* to, const float* from, float factor) {
  int64_t d = 0;
  for (; d + F::W <= head.dim; d += F::W) store(to + d, load(from + d) * F(factor));
  if (d < head.dim) store_n(to + d, load(from + d) * F(factor), static_cast<int>(head.dim - d));
}

inline void scale_row(const HeadLayout& head, float* row, float factor) {
  for (int64_t d = 0; d < head.padded; d += F::W) store(row + d, load(row + d) * F(factor));
}

inline void clear(float* to, int64_t begin, int64_t end) {
  for (; begin + F::W <= end; begin += F::W) store(to + begin, zero());
  if (begin < end) store_n(to + begin, zero(), static_cast<int>(end - begin));
}

// 8 x 8 floats: row j of `from` becomes column j of `to`.
inline void transpose8(const float* const from[8], int64_t offset, float* to, int64_t stride) {
  __m256 half[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {  // rows j % 4 and j % 4 + 4 in the two lanes, four columns from 4 (j / 4)
    const __m128 low = _mm_loadu_ps(from[j % 4] + offset + j / 4 * 4), high = _mm_loadu_ps(from[j % 4 + 4] + offset + j / 4 * 4);
    half[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
  }
#pragma GCC unroll 2
  for (int j = 0; j < 8; j += 4) {
    const __m256 a = _mm256_unpacklo_ps(half[j], half[j + 1]), b = _mm256_unpackhi_ps(half[j], half[j + 1]);
    const __m256 c = _mm256_unpacklo_ps(half[j + 2], half[j + 3]), d = _mm256_unpackhi_ps(half[j + 2], half[j + 3]);
    _mm256_storeu_ps(to + (j + 0) * stride, _mm256_shuffle_ps(a, c, 0x44));
    _mm256_storeu_ps(to + (j + 1) * stride, _mm256_shuffle_ps(a, c, 0xee));
    _mm256_storeu_ps(to + (j + 2) * stride, _mm256_shuffle_ps(b, d, 0x44));
    _mm256_storeu_ps(to + (j + 3) * stride, _mm256_shuffle_ps(b, d, 0xee));
  }
}

// Transposes keys (or values) into panels: to[panel][d][key of panel], kTileColumns keys in each panel. The last vector of keys is filled
// with copies of the last key; their products are masked later. row(j): the elements of key j.
template <typename Row>
inline void pack_transposed(const HeadLayout& head, float* to, Row row, int64_t keys) {
  for (int64_t key = 0; key < round_up(keys, F::W); key += 8) {
    const float* rows[8];
    for (int j = 0; j < 8; ++j) rows[j] = row(min(key + j, keys - 1));
    float* panel = to + key / kTileColumns * kTileColumns * head.dim + key % kTileColumns;
    int64_t d = 0;
    for (; d + 8 <= head.dim; d += 8) transpose8(rows, d, panel + d * kTileColumns, kTileColumns);
    for (; d < head.dim; ++d)
      for (int j = 0; j < 8; ++j) panel[d * kTileColumns + j] = rows[j][d];
  }
}

// A position in the stack: to increment is cheaper than to divide by the group for each row.
struct StackPlace {
  int64_t query, member;  // token of the row; query head within the group
  int64_t group;
  StackPlace(int64_t first_query, int64_t i, int64_t heads_of_group)
      : query(first_query + i / heads_of_group), member(i % heads_of_group), group(heads_of_group) {}
  void next() {
    if (++member == group) member = 0, ++query;
  }
};

// The columns of a register tile's scores that are computed: whole vectors of keys, counted from the first of the block.
struct TileKeys {
  int64_t seen_begin, seen_end;  // keys visible to some query of the tile; none if begin >= end
  int64_t begin, end;            // the same, extended to whole panels at the front and whole vectors at the back
  bool earlier;                  // whether an earlier block has visible keys
  int64_t first, last;           // all visible keys of the task, counted from the first of the row

  TileKeys(const AttentionShape& shape, const AttentionTask& task, int64_t first_query, int64_t last_query, int64_t block_begin, int64_t block_end)
      : first(max(task.k_begin, attention_visible(shape, task.row, first_query).begin)),
        last(min(task.k_end, attention_visible(shape, task.row, last_query).end)) {
    seen_begin = max(first, block_begin) - block_begin;
    seen_end = min(last, block_end) - block_begin;
    begin = round_down(seen_begin, kTileColumns);
    end = round_up(seen_end, F::W);
    earlier = first < block_begin;
  }
  bool none() const { return seen_begin >= seen_end; }
};

// Sets the scores in [begin, end) that are masked, before key `from` or from key `to` on, to -infinity. begin and end: whole vectors.
inline void mask_row(float* scores, int64_t begin, int64_t end, int64_t from, int64_t to) {
  const F masked(-__builtin_inff());
  if (to < end) {
    to = max(to, begin);
    int64_t j = round_down(to, F::W);
    if (j < to) store(scores + j, first_n(load(scores + j), masked, static_cast<int>(to - j))), j += F::W;
    for (; j < end; j += F::W) store(scores + j, masked);
  }
  if (begin < from) {
    from = min(from, end);
    int64_t j = begin;
    for (; j + F::W <= from; j += F::W) store(scores + j, masked);
    if (j < from) store(scores + j, first_n(masked, load(scores + j), static_cast<int>(from - j)));
  }
}

// mask_row for the rows of a register tile, the first at `place`.
inline void mask_tile(const AttentionShape& shape, int64_t row, StackPlace place, int64_t rows, int64_t block_begin, const TileKeys& keys, float* scores,
                      int64_t stride) {
  for (int64_t i = 0; i < rows; ++i, place.next(), scores += stride) {
    const AttentionKeys seen = attention_visible(shape, row, place.query);
    mask_row(scores, keys.begin, keys.end, seen.begin - block_begin, min(seen.end - block_begin, keys.seen_end));
  }
}

}  // namespace graft::GRAFT_ISA
