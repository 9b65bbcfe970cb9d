// CPU kernels on quantised weights in blocks: unpack, look up rows, multiply, quantise.
//
// A weight is [out, in] row-major; a row is in / elements(format) consecutive blocks, without padding between
// rows. `in` must be a multiple of the elements of a block: the caller checks it. Pointers may be unaligned, and no
// kernel reads or writes beyond the bytes that its arguments describe. Nothing here starts threads, allocates or
// throws: the caller distributes rows over threads.
//
// Block layouts: ggml's ggml-common.h (files of type GGUF); NF4: QLoRA, arXiv 2305.14314, appendix E, packed as
// bitsandbytes does (first element in the high nibble), with its fp32 absmax in front of the codes.
#pragma once

#include <cstdint>

namespace graft {

// The ids are ggml's tensor types; NF4 and the integers have none in ggml. INTb: b-bit integers with an fp32 scale and a zero point.
enum class BlockFormat : int32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30, NF4 = 100,
  INT2 = 102, INT3 = 103, INT4 = 104, INT5 = 105, INT6 = 106, INT7 = 107, INT8 = 108,
};

struct BlockLayout {
  int32_t elements;  // weights in one block; 0: no such format
  int32_t bytes;     // bytes of one block
};

// Always inlined: this header is compiled for several instruction sets, and the linker keeps only one copy of a
// function that is not inlined.
[[gnu::always_inline]] constexpr BlockLayout block_layout(BlockFormat format) {
  switch (format) {
    case BlockFormat::F32: return {1, 4};
    case BlockFormat::F16: return {1, 2};
    case BlockFormat::BF16: return {1, 2};
    case BlockFormat::Q4_0: return {32, 2 + 16};            // d, codes
    case BlockFormat::Q4_1: return {32, 4 + 16};            // d, m, codes
    case BlockFormat::Q5_0: return {32, 2 + 4 + 16};        // d, fifth bits, low nibbles
    case BlockFormat::Q5_1: return {32, 4 + 4 + 16};        // d, m, fifth bits, low nibbles
    case BlockFormat::Q8_0: return {32, 2 + 32};            // d, codes
    case BlockFormat::Q4_K: return {256, 4 + 12 + 128};     // d, dmin, scales, codes
    case BlockFormat::Q5_K: return {256, 4 + 12 + 32 + 128};  // d, dmin, scales, fifth bits, low nibbles
    case BlockFormat::Q6_K: return {256, 128 + 64 + 16 + 2};  // low nibbles, high bit pairs, scales, d
    case BlockFormat::NF4: return {64, 4 + 32};             // absmax (fp32), codes
    case BlockFormat::INT2:                                 // scale (fp32), zero point (int8), b bits of each code
    case BlockFormat::INT3:
    case BlockFormat::INT4:
    case BlockFormat::INT5:
    case BlockFormat::INT6:
    case BlockFormat::INT7:
    case BlockFormat::INT8: return {32, 4 + 1 + 4 * (static_cast<int32_t>(format) - 100)};
  }
  return {0, 0};
}

// Formats whose codes reach both ends of a block's range clip nothing.
constexpr bool clips(BlockFormat format) {
  switch (format) {
    case BlockFormat::Q4_0:
    case BlockFormat::Q5_0:
    case BlockFormat::Q4_K:
    case BlockFormat::Q5_K:
    case BlockFormat::Q6_K: return true;
    default: return false;
  }
}

constexpr int64_t clipped_words(int64_t in) { return (in + 31) / 32; }

constexpr int64_t kMatvecMaxRows = 8;  // the maximum of activation rows of one matvec call
constexpr int kRowGroup = 4;           // the rows of activations that matmul takes together

// The kernels of one instruction set. `src` is always the start of the whole weight; row numbers are absolute.
struct BlockKernels {
  // dst[i, :] = W[first_row + i, :] for i < n_rows; rows of dst are dst_stride elements apart.
  // Equal, bit for bit, to the documented formula evaluated in fp32. All formats.
  void (*dequantize_f32)(BlockFormat, const void* src, int64_t first_row, int64_t n_rows, int64_t in, float* dst,
                         int64_t dst_stride);
  // The same, rounded to bf16 (to nearest, ties to even; NaN stays NaN).
  void (*dequantize_bf16)(BlockFormat, const void* src, int64_t first_row, int64_t n_rows, int64_t in, uint16_t* dst,
                          int64_t dst_stride);

  // dst[i, :] = W[rows[i], :]: embedding look-up. Row numbers are not checked. All formats.
  void (*gather_f32)(BlockFormat, const void* src, const int64_t* rows, int64_t n_rows, int64_t in, float* dst,
                     int64_t dst_stride);
  void (*gather_bf16)(BlockFormat, const void* src, const int64_t* rows, int64_t n_rows, int64_t in, uint16_t* dst,
                      int64_t dst_stride);

  // y[i, r] (+)= sum_k x[i, k] * W[r, k] for i < m, row_begin <= r < row_end; 1 <= m <= kMatvecMaxRows.
  // Weights are unpacked in registers, once for all m rows; products and sums are fp32: equal to fp32 arithmetic on
  // the unpacked weights except for the order of summation. That order depends on the instruction set only: a result does
  // not depend on m, on its position among the activation rows, or on the row range. All formats.
  void (*matvec)(BlockFormat, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* x,
                 int64_t m, int64_t x_stride, float* y, int64_t y_stride, bool accumulate);

  // The same for any n rows, with the same bits (written): weights are unpacked once for all of them, `panel_size` floats at a time, into
  // `scratch`. The activations are arranged before, once for all rows of the weight: `arranged_size` floats.
  int64_t (*arranged_size)(BlockFormat, int64_t n, int64_t in);
  int64_t (*panel_size)(BlockFormat, int64_t in);
  void (*arrange)(BlockFormat, const float* x, int64_t n, int64_t x_stride, int64_t in, float* to);
  void (*matmul)(BlockFormat, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* arranged, int64_t n, float* scratch,
                 float* y, int64_t y_stride);

  // Quantises fp32 rows [n_rows, in] to consecutive blocks; the rows of src are src_stride elements apart. The rules are
  // those of ggml's ggml_quantize_chunk without an importance matrix, as builds for x86-64 without FMA compute it (ggml's
  // own; a build with FMA contracts products of the K formats and rounds some codes otherwise); NF4 takes the nearest code
  // by midpoints. INTb packs codes that integers.h computes, and is not quantised here.
  // Returns n_rows, or the first row that holds a number that is not finite or too large for the scales of the format.
  int64_t (*quantize)(BlockFormat, const float* src, int64_t src_stride, int64_t n_rows, int64_t in, void* dst);

  // dst = the rows quantised and unpacked again, without a copy of their blocks. Bit j of the words of a row in `clipped`
  // (clipped_words(in) a row; null: not wanted) is set where element j lies beyond the range of codes and was brought to
  // its end. Returns what quantize returns.
  int64_t (*fake_quantize)(BlockFormat, const float* src, int64_t n_rows, int64_t in, float* dst, uint32_t* clipped);
};

namespace avx2 { extern const BlockKernels blocks; }    // AVX2, FMA, F16C
namespace avx512 { extern const BlockKernels blocks; }  // also AVX-512 F, BW, VL, DQ

}  // namespace graft
