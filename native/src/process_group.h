// Processes that work together: a key-value store that all of them reach (c10d's TCPStore), and collectives (c10d's ProcessGroupGloo),
// which are operators of the namespace _c10d_functional and are called as all others are. What is here is what operators cannot do: to
// join, to wait with a limit, and to notice that others fail.
#pragma once
#include <memory>

#include "handles.h"

namespace graft {

class ProcessGroup;

// (host, port, whether this process hosts the store, its rank, milliseconds) => index of the group
Napi::Value store_open(const Napi::CallbackInfo& info);
// (group, key, value)
Napi::Value store_set(const Napi::CallbackInfo& info);
// (group, key, value) => the value that the key has now: that of the process which was first
Napi::Value store_set_once(const Napi::CallbackInfo& info);
// (group, key, milliseconds) => the value, or null where there was none in this time
Napi::Value store_get(const Napi::CallbackInfo& info);
// (host, port) => the address of this machine on the way to that host
Napi::Value address_towards(const Napi::CallbackInfo& info);
// (group, size, address to listen at or null, milliseconds, prefix of its keys, name by which operators find it): connects to every other process
// => 'done', 'alarm' (a process raised it, or the store's ended) or 'late'; throws what connecting fails with
Napi::Value group_connect(const Napi::CallbackInfo& info);
// (group, tensor that a collective returned, milliseconds) => 'done', 'alarm' (a process raised it) or 'late'; throws what the collective fails with
Napi::Value group_wait(const Napi::CallbackInfo& info);
// (group, whether its collectives have ended): one that still waits for others is left behind, because its threads cannot be stopped
Napi::Value group_close(const Napi::CallbackInfo& info);

}  // namespace graft
