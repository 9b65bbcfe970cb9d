// Calls any operator of LibTorch's registry, Graft's included: boxed, with the arguments converted by its schema.
#pragma once
#include "handles.h"

namespace graft {

// The JavaScript value that a schema type needs (an `optional` one also takes null or undefined).
enum class Kind : uint8_t {
  kTensor, kTensorList, kOptionalTensorList, kInt, kFloat, kBool, kScalar, kString,
  kIntList, kFloatList, kBoolList, kScalarType, kDevice, kLayout, kMemoryFormat, kGenerator
};

struct Param {
  Kind kind;
  bool optional;
};

struct Op {
  std::string name;
  c10::OperatorHandle handle;
  std::vector<Param> params;
  bool in_place;  // returns its first argument, for which no second handle is created
  bool makes;     // makes a tensor from none: on the device of new tensors, where no other is named
  bool moves;     // may copy between devices
  int device;     // index of the argument that is a device, and of the one that is a generator; -1: it has none
  int generator;
};

Op resolve(const std::string& name, const std::string& overload);

// (op index, ...arguments) => handle, value, or array of them
Napi::Value call(const Napi::CallbackInfo& info);

}  // namespace graft
