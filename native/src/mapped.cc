#include "mapped.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace graft {
namespace {

size_t page() {
  static const size_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

}  // namespace

// (file descriptor, byte of the file, shape, dtype code, shared) => handle of a tensor on these bytes. Shared: what is written to the tensor goes
// to the file, which must be open for writing; else it stays in memory, and the file as it is. The descriptor may be closed afterwards.
Napi::Value map_file(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "map", no_shapes, [&]() -> Napi::Value {
    const int descriptor = info[0].As<Napi::Number>().Int32Value();
    const int64_t at = info[1].As<Napi::Number>().Int64Value();
    const auto shape = info[2].As<Napi::Array>();
    std::vector<int64_t> sizes(shape.Length());
    for (uint32_t i = 0; i < shape.Length(); i++) sizes[i] = Napi::Value(shape[i]).As<Napi::Number>().Int64Value();
    const auto dtype = static_cast<at::ScalarType>(info[3].As<Napi::Number>().Int32Value());
    const bool shared = info[4].ToBoolean();
    size_t bytes = c10::elementSize(dtype);
    TORCH_CHECK(at % static_cast<int64_t>(bytes) == 0, "numbers of ", bytes, " bytes cannot begin at byte ", at, " of a file");
    for (const int64_t size : sizes) bytes *= size;
    TORCH_CHECK(bytes > 0, "a tensor without numbers cannot be mapped");
    const size_t before = at % page();
    const size_t length = before + bytes;
    // Private pages are memory only once they are written to: no swap is reserved for them.
    void* start = mmap(nullptr, length, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE, descriptor,
                       at - static_cast<int64_t>(before));
    TORCH_CHECK(start != MAP_FAILED, "the file cannot be mapped: ", std::strerror(errno));
    const auto unmap = [start, length](void*) { munmap(start, length); };
    const at::Tensor tensor = at::from_blob(static_cast<char*>(start) + before, sizes, unmap, at::TensorOptions(dtype));
    return Napi::Number::New(env, instance(env).tensors.add(tensor));
  });
}

// (file descriptor, first byte, bytes) => 0, or the errno of a disk that has no room: takes room for these bytes of the file, which grows with them
Napi::Value allocate_file(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "allocate", no_shapes, [&]() -> Napi::Value {
    int error;
    do {
      error = posix_fallocate(info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::Number>().Int64Value(),
                              info[2].As<Napi::Number>().Int64Value());
    } while (error == EINTR);
    return Napi::Number::New(env, error);
  });
}

// (handle of a shared mapping, file descriptor, byte of the file): waits for what is on its way to the disk, begins to write what has changed
// since, and takes the pages off this process. They stay in the kernel's cache while there is room
Napi::Value write_back(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, "writeBack", no_shapes, [&]() -> Napi::Value {
    const at::Tensor& tensor = instance(env).tensors.get(info[0].As<Napi::Number>().Uint32Value());
    const int descriptor = info[1].As<Napi::Number>().Int32Value();
    sync_file_range(descriptor, info[2].As<Napi::Number>().Int64Value(), tensor.nbytes(),
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
    auto* const first = static_cast<char*>(tensor.data_ptr());
    const size_t before = reinterpret_cast<uintptr_t>(first) % page();
    madvise(first - before, before + tensor.nbytes(), MADV_DONTNEED);
    return env.Undefined();
  });
}

}  // namespace graft
