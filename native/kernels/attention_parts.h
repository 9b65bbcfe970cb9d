// The functions in the table that attention.cc exports.
#pragma once

#include "attention.h"

namespace graft::GRAFT_ISA {

int64_t forward_scratch(const AttentionShape& shape, const AttentionTask* tasks, int64_t count);
void forward(const AttentionForward& args, const AttentionTask* tasks, int64_t begin, int64_t end, float* workspace, float* scratch);
void forward_merge(const AttentionForward& args, const AttentionTask* parts, const AttentionMerge* merges, int64_t begin, int64_t end,
                   const float* workspace);
int64_t backward_scratch(const AttentionShape& shape);
void backward(const AttentionBackward& args, const AttentionTask* tasks, int64_t begin, int64_t end, float* workspace, float* scratch);
void backward_merge(const AttentionBackward& args, const AttentionTask* parts, const AttentionMerge* merges, int64_t begin, int64_t end,
                    const float* workspace);

}  // namespace graft::GRAFT_ISA
