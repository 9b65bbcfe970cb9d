#pragma once

namespace graft {

// Makes LibTorch allocate tensors with malloc, aligned by this allocator. Call it once, before the first tensor.
void use_heap_allocator();

}  // namespace graft
