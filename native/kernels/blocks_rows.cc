// y = x Wᵀ for more rows of activations than one matvec takes: a panel of the weight is unpacked once, into a cache, and multiplied by all
// rows. Sums are added up in the order of block_matvec, so a row has the same bits with both.
#include "blocks_tables.h"
#include "blocks_unpack.h"

namespace graft::GRAFT_ISA {
namespace {

// A tile is the sums of some rows of the weight with kRowGroup rows of activations. They, the weights and one of the activations fill
// the registers: 16 with AVX2, 32 with AVX-512.
#ifdef __AVX512F__
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kSums = kTileRows * kRowGroup;

constexpr int64_t kPassVectors = 24 * 1024 / (kRowGroup * sizeof(F));  // of activations, which stay in L1 with the weights of a tile
constexpr int64_t kPanelBytes = 128 * 1024;                            // of unpacked weights, which stay in L2 for all groups
constexpr int64_t kTilesAhead = 2;                                     // as long as a number takes from memory
constexpr int64_t kMaxTiles = 64;                                      // of a panel: their sums are stored between passes

// sums[r][i] (+)= W[row r] · x[row i] over `vectors` vectors; with `fresh` they start from zero. x [vectors, kRowGroup, F::W]; rows holds
// kTileRows rows of the weight. With prefetch, numbers `ahead` of them are brought to L2 meanwhile: the processor's own prefetcher does not
// follow several short rows at a time.
template <bool prefetch> void add_tile(const float* const* rows, const float* x, int64_t vectors, bool fresh, int64_t ahead, F* in_out) {
  F sums[kTileRows][kRowGroup];
  // All loops over sums are unrolled; otherwise the sums would not stay in registers.
#pragma GCC unroll 24
  for (int k = 0; k < kSums; ++k) sums[k / kRowGroup][k % kRowGroup] = fresh ? zero() : in_out[k];
  const float* w[kTileRows];
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) w[r] = rows[r];
#pragma GCC unroll 2
  for (int64_t v = 0; v < vectors; ++v, x += kRowGroup * F::W) {
    F weights[kTileRows];
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      weights[r] = load(w[r] + v * F::W);
      if (prefetch) _mm_prefetch(w[r] + v * F::W + ahead, _MM_HINT_T1);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRowGroup; ++i) {
      const F numbers = load(x + i * F::W);
#pragma GCC unroll 6
      for (int r = 0; r < kTileRows; ++r) sums[r][i] = fma(weights[r], numbers, sums[r][i]);
    }
  }
#pragma GCC unroll 24
  for (int k = 0; k < kSums; ++k) in_out[k] = sums[k / kRowGroup][k % kRowGroup];
}

// Returns the number of floats of an unpacked row, whose last block is padded with zeros.
int64_t padded_width(BlockFormat format, int64_t in) {
  int64_t width = in;
  with_format(format, [&](auto tag) __attribute__((always_inline)) {
    constexpr int elements = Unpacker<decltype(tag)::value>::elements;
    width = (in + elements - 1) / elements * elements;
  });
  return width;
}

// Unpacks a row, with its vectors in the order in which the unpacker gives them. A padded row has `rest` numbers after its last whole block.
template <BlockFormat format> void unpack_in_order(const uint8_t* src, int64_t in, float* to) {
  using U = Unpacker<format>;
  const auto write = [&](int, F w) __attribute__((always_inline)) {
    store(to, w);
    to += F::W;
  };
  for (int64_t b = in / U::elements; b > 0; --b, src += U::bytes) unpack_block<format>(src, write);
  if constexpr (block_layout(format).elements == 1) {
    if (const int64_t rest = in % U::elements; rest != 0) {
      alignas(64) uint8_t padded[U::bytes] = {};
      __builtin_memcpy(padded, src, rest * block_layout(format).bytes);
      unpack_block<format>(padded, write);
    }
  }
}

// Where a panel's rows begin, and how far they are apart, in floats.
struct Panel {
  const float* first;
  int64_t stride;
};

// Returns the rows [row, row + count) unpacked; float32 is read where it is.
Panel unpack_panel(BlockFormat format, const void* src, int64_t row, int64_t count, int64_t in, int64_t width, float* scratch) {
  if (format == BlockFormat::F32 && width == in) return {static_cast<const float*>(src) + row * in, in};
  with_format(format, [&](auto tag) __attribute__((always_inline)) {
    constexpr BlockFormat f = decltype(tag)::value;
    const int64_t row_bytes = in / block_layout(f).elements * block_layout(f).bytes;
    for (int64_t r = 0; r < count; ++r) unpack_in_order<f>(static_cast<const uint8_t*>(src) + (row + r) * row_bytes, in, scratch + r * width);
  });
  return {scratch, width};
}

int64_t panel_tiles(int64_t width) {
  const int64_t fit = kPanelBytes / (width * kTileRows * static_cast<int64_t>(sizeof(float)));
  return fit < 1 ? 1 : fit > kMaxTiles ? kMaxTiles : fit;
}

// Adds the lanes of a tile's sums and writes them to y.
void write_tile(const F* sums, float* y, int64_t y_stride, int64_t rows, int64_t activations) {
  for (int r = 0; r < rows; ++r) {
    alignas(16) float added[kRowGroup];
    _mm_store_ps(added, hsum4(sums[r * kRowGroup], sums[r * kRowGroup + 1], sums[r * kRowGroup + 2], sums[r * kRowGroup + 3]));
    for (int64_t i = 0; i < activations; ++i) y[i * y_stride + r] = added[i];
  }
}

}  // namespace

int64_t block_arranged_size(BlockFormat format, int64_t n, int64_t in) {
  return (n + kRowGroup - 1) / kRowGroup * kRowGroup * padded_width(format, in);
}

int64_t block_panel_size(BlockFormat format, int64_t in) {
  const int64_t width = padded_width(format, in);
  return panel_tiles(width) * kTileRows * width;
}

void block_arrange(BlockFormat format, const float* x, int64_t n, int64_t x_stride, int64_t in, float* to) {
  with_format(format, [&](auto tag) __attribute__((always_inline)) {
    using U = Unpacker<decltype(tag)::value>;
    alignas(64) const uint8_t block[U::bytes] = {};
    int order[U::elements / F::W], vectors = 0;
    unpack_block<decltype(tag)::value>(block, [&](int j, F) { order[vectors++] = j; });
    for (int64_t first = 0; first < n; first += kRowGroup) {
      for (int64_t column = 0; column < in; column += U::elements) {
        for (const int j : order) {
          for (int64_t i = first; i < first + kRowGroup; ++i, to += F::W) {
            const int64_t left = i < n ? in - column - j : 0;
            store(to, left >= F::W ? load(x + i * x_stride + column + j) : left > 0 ? load_n(x + i * x_stride + column + j, static_cast<int>(left)) : zero());
          }
        }
      }
    }
  });
}

void block_matmul(BlockFormat format, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* arranged, int64_t n,
                  float* scratch, float* y, int64_t y_stride) {
  const int64_t width = padded_width(format, in), vectors = width / F::W, panel_rows = panel_tiles(width) * kTileRows;
  const int64_t passes = (vectors + kPassVectors - 1) / kPassVectors, pass = (vectors + passes - 1) / passes;
  F sums[kMaxTiles * kSums];
  for (int64_t row = row_begin; row < row_end; row += panel_rows) {
    const int64_t count = row_end - row < panel_rows ? row_end - row : panel_rows;
    const Panel panel = unpack_panel(format, src, row, count, in, width, scratch);
    const float* x = arranged;
    for (int64_t group = 0; group < n; group += kRowGroup, x += kRowGroup * width) {
      for (int64_t begin = 0; begin < vectors; begin += pass) {
        const int64_t now = vectors - begin < pass ? vectors - begin : pass;
        for (int64_t r = 0; r < count; r += kTileRows) {
          const float* rows[kTileRows];
          for (int k = 0; k < kTileRows; ++k) rows[k] = panel.first + (r + k < count ? r + k : count - 1) * panel.stride + begin * F::W;
          F* tile = sums + r * kRowGroup;
          const bool from_memory = group == 0 && panel.first != scratch;
          (from_memory ? add_tile<true> : add_tile<false>)(rows, x + begin * kRowGroup * F::W, now, begin == 0, kTilesAhead * kTileRows * width, tile);
          if (begin + now == vectors) {
            write_tile(tile, y + group * y_stride + row + r, y_stride, count - r < kTileRows ? count - r : kTileRows, n - group < kRowGroup ? n - group : kRowGroup);
          }
        }
      }
    }
  }
}

}  // namespace graft::GRAFT_ISA
