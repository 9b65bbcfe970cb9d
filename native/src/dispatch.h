// One door: any operator of LibTorch's registry, ours included, called boxed with values converted by its own schema.
#pragma once
#include "handles.h"

namespace graft {

// What a schema type asks of the JavaScript value (an `optional` one also takes null or undefined).
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
  bool in_place;  // returns its own argument: no second handle is made for it
};

Op resolve(const std::string& name, const std::string& overload);

// (op index, ...arguments) => handle, value, or array of them
Napi::Value call(const Napi::CallbackInfo& info);

}  // namespace graft
