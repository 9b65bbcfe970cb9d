// Tensors whose memory is a part of a file, which the kernel reads when it is needed and drops when memory is short.
#pragma once
#include "handles.h"

namespace graft {

Napi::Value map_file(const Napi::CallbackInfo& info);
Napi::Value allocate_file(const Napi::CallbackInfo& info);
Napi::Value write_back(const Napi::CallbackInfo& info);

}  // namespace graft
