// The functions of other files in the table of BlockKernels.
#pragma once

#include "blocks.h"

namespace graft::GRAFT_ISA {

void block_matvec(BlockFormat, const void* src, int64_t row_begin, int64_t row_end, int64_t in, const float* x, int64_t m, int64_t x_stride,
                  float* y, int64_t y_stride, bool accumulate);
bool quantize_blocks(BlockFormat, const float* src, int64_t src_stride, int64_t n_rows, int64_t in, void* dst);

}  // namespace graft::GRAFT_ISA
