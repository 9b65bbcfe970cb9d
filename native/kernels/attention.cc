// The table of attention kernels of one instruction set. See attention.h.
#include "attention.h"

#include "attention_parts.h"

namespace graft::GRAFT_ISA {

const AttentionKernels attention = {forward_scratch, forward, forward_merge, backward_scratch, backward, backward_merge};

}  // namespace graft::GRAFT_ISA
