// The functions of other files in the table of BlockKernels.
#pragma once

#include "blocks.h"

namespace graft::GRAFT_ISA {

void block_matvec(BlockFormat, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* x, int64_t m, int64_t x_stride,
                  float* y, int64_t y_stride, bool accumulate);
int64_t block_arranged_size(BlockFormat, int64_t n, int64_t in);
int64_t block_panel_size(BlockFormat, int64_t in);
void block_arrange(BlockFormat, const float* x, int64_t n, int64_t x_stride, int64_t in, float* to);
void block_matmul(BlockFormat, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* arranged, int64_t n, float* scratch,
                  float* y, int64_t y_stride);
int64_t quantize_blocks(BlockFormat, const float* src, int64_t src_stride, int64_t n_rows, int64_t in, void* dst);
int64_t fake_quantize_blocks(BlockFormat, const float* src, int64_t n_rows, int64_t in, float* dst, uint32_t* clipped);

}  // namespace graft::GRAFT_ISA
