// Unpacks rows of block-quantised weights to fp32 or bf16: ranges of rows, and the rows of an embedding look-up.
#include "blocks_tables.h"
#include "blocks_unpack.h"

namespace graft::GRAFT_ISA {
namespace {

GRAFT_INLINE void store_as(float* p, F x) { store(p, x); }
GRAFT_INLINE void store_as(uint16_t* p, F x) { store_bf16(p, x); }

template <BlockFormat format, class T> GRAFT_INLINE void unpack_row(const uint8_t* src, int64_t in, T* dst) {
  using U = Unpacker<format>;
  const int64_t blocks = in / U::elements;
  for (int64_t b = 0; b < blocks; ++b, src += U::bytes, dst += U::elements) {
    unpack_block<format>(src, [&](int j, F w) __attribute__((always_inline)) { store_as(dst + j, w); });
  }
  if constexpr (block_layout(format).elements == 1) {
    if (const int64_t rest = in % U::elements; rest != 0) {
      alignas(64) uint8_t padded[U::bytes] = {};
      alignas(64) T unpacked[U::elements];
      __builtin_memcpy(padded, src, rest * block_layout(format).bytes);
      unpack_block<format>(padded, [&](int j, F w) __attribute__((always_inline)) { store_as(unpacked + j, w); });
      __builtin_memcpy(dst, unpacked, rest * sizeof(T));
    }
  }
}

// row_of(i): the row of the weight that is written to row i of dst
template <class T, class RowOf>
GRAFT_INLINE void unpack_rows(BlockFormat format, const void* src, int64_t n_rows, int64_t in, T* dst, int64_t dst_stride, RowOf&& row_of) {
  with_format(format, [&](auto tag) __attribute__((always_inline)) {
    constexpr BlockFormat f = decltype(tag)::value;
    const int64_t row_bytes = in / block_layout(f).elements * block_layout(f).bytes;
    for (int64_t i = 0; i < n_rows; ++i) {
      unpack_row<f>(static_cast<const uint8_t*>(src) + row_of(i) * row_bytes, in, dst + i * dst_stride);
    }
  });
}

template <class T>
void dequantize(BlockFormat format, const void* src, int64_t first_row, int64_t n_rows, int64_t in, T* dst, int64_t dst_stride) {
  unpack_rows(format, src, n_rows, in, dst, dst_stride, [=](int64_t i) { return first_row + i; });
}

template <class T>
void gather(BlockFormat format, const void* src, const int64_t* rows, int64_t n_rows, int64_t in, T* dst, int64_t dst_stride) {
  unpack_rows(format, src, n_rows, in, dst, dst_stride, [=](int64_t i) { return rows[i]; });
}

}  // namespace

const BlockKernels blocks = {
    .dequantize_f32 = dequantize<float>,
    .dequantize_bf16 = dequantize<uint16_t>,
    .gather_f32 = gather<float>,
    .gather_bf16 = gather<uint16_t>,
    .matvec = block_matvec,
    .arranged_size = block_arranged_size,
    .panel_size = block_panel_size,
    .arrange = block_arrange,
    .matmul = block_matmul,
    .quantize = quantize_blocks,
    .fake_quantize = fake_quantize_blocks,
};

}  // namespace graft::GRAFT_ISA
