#pragma once

namespace graft {

// Makes LibTorch take the memory of tensors from malloc, aligned by hand. Call it once, before the first tensor.
void use_heap_allocator();

}  // namespace graft
