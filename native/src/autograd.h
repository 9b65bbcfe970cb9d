// Gradients, with LibTorch's autograd engine on the calling thread.
#pragma once
#include "handles.h"

namespace graft {
Napi::Value checkpoint(const Napi::CallbackInfo& info);
Napi::Value backward(const Napi::CallbackInfo& info);
Napi::Value grad(const Napi::CallbackInfo& info);
Napi::Value set_grad(const Napi::CallbackInfo& info);
Napi::Value on_gradient(const Napi::CallbackInfo& info);
Napi::Value set_requires_grad(const Napi::CallbackInfo& info);
Napi::Value requires_grad(const Napi::CallbackInfo& info);
Napi::Value set_grad_enabled(const Napi::CallbackInfo& info);
}  // namespace graft
