// The system's aligned allocation, which LibTorch uses, splits a block at both ends in every call and fragments the heap: a training run of
// 1.5 GB grew to 1.9 GB. A block of malloc that is larger by the alignment avoids that.
#include "memory.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "torch.h"

namespace graft {
namespace {

constexpr size_t kAlignment = 64;  // a cache line, and what LibTorch expects

// What a thread allocated. Several engine threads of a process do not count one another's tensors; what another thread frees, such as one that
// waits for a collective, is taken off the count of the thread that allocated it.
struct Count {
  std::atomic<int64_t> live{0};
  int64_t peak = 0;
};

// Counts are never freed: blocks refer to them, and outlive threads.
Count& own_count() {
  thread_local Count* const count = new Count;
  return *count;
}

// Stored directly before the returned address.
struct Block {
  void* start;
  Count* count;
};

Block& block_of(void* address) { return static_cast<Block*>(address)[-1]; }

void release(void* address) {
  if (!address) return;
  const Block block = block_of(address);
  block.count->live -= static_cast<int64_t>(malloc_usable_size(block.start));
  std::free(block.start);
}

struct HeapAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, at::Device(at::kCPU)};
    void* block = std::malloc(bytes + sizeof(Block) + kAlignment);
    TORCH_CHECK_WITH(OutOfMemoryError, block, "out of memory: cannot allocate ", bytes, " bytes");
    Count& count = own_count();
    count.peak = std::max<int64_t>(count.peak, count.live += static_cast<int64_t>(malloc_usable_size(block)));
    const auto first = reinterpret_cast<uintptr_t>(block) + sizeof(Block);
    void* address = reinterpret_cast<void*>((first + kAlignment - 1) / kAlignment * kAlignment);
    block_of(address) = {block, &count};
    return {address, address, &release, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

HeapAllocator allocator;

}  // namespace

void use_heap_allocator() { c10::SetAllocator(at::kCPU, &allocator, 1); }

AllocatedBytes allocated_bytes() {
  Count& count = own_count();
  const AllocatedBytes bytes{count.live.load(), count.peak};
  count.peak = bytes.now;
  return bytes;
}

}  // namespace graft
