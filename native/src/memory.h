#pragma once
#include <cstdint>

namespace graft {

// Makes LibTorch allocate tensors with malloc, aligned by this allocator. Call it once, before the first tensor.
void use_heap_allocator();

// Bytes of all tensors that this thread allocated, those that autograd keeps included: now, and at most since the last call.
struct AllocatedBytes {
  int64_t now, peak;
};
AllocatedBytes allocated_bytes();

}  // namespace graft
