#include "dispatch.h"

#include "device.h"

#include <sstream>

namespace graft {
namespace {

Kind kind_of(const c10::Type& type) {
  using c10::TypeKind;
  switch (type.kind()) {
    case TypeKind::TensorType: return Kind::kTensor;
    case TypeKind::IntType:
    case TypeKind::SymIntType: return Kind::kInt;
    case TypeKind::FloatType: return Kind::kFloat;
    case TypeKind::BoolType: return Kind::kBool;
    case TypeKind::NumberType: return Kind::kScalar;
    case TypeKind::StringType: return Kind::kString;
    case TypeKind::ScalarTypeType: return Kind::kScalarType;
    case TypeKind::DeviceObjType: return Kind::kDevice;
    case TypeKind::LayoutType: return Kind::kLayout;
    case TypeKind::MemoryFormatType: return Kind::kMemoryFormat;
    case TypeKind::GeneratorType: return Kind::kGenerator;
    case TypeKind::ListType: {
      const auto& element = *type.castRaw<c10::ListType>()->getElementType();
      if (element.kind() == TypeKind::OptionalType) return Kind::kOptionalTensorList;
      switch (kind_of(element)) {
        case Kind::kTensor: return Kind::kTensorList;
        case Kind::kInt: return Kind::kIntList;
        case Kind::kFloat: return Kind::kFloatList;
        case Kind::kBool: return Kind::kBoolList;
        default: break;
      }
      [[fallthrough]];
    }
    default: TORCH_CHECK(false, "arguments of the schema type ", type.str(), " are not supported");
  }
}

Param param_of(const c10::Argument& argument) {
  // real_type distinguishes ScalarType, Layout and MemoryFormat from int.
  const auto type = argument.real_type();
  if (type->kind() == c10::TypeKind::OptionalType) {
    return {kind_of(*type->castRaw<c10::OptionalType>()->getElementType()), true};
  }
  return {kind_of(*type), false};
}

bool is_nullish(napi_env env, napi_value value) {
  napi_valuetype type;
  napi_typeof(env, value, &type);
  return type == napi_undefined || type == napi_null;
}

int64_t to_int(napi_env env, napi_value value) {
  double number;
  if (napi_get_value_double(env, value, &number) == napi_ok) {
    TORCH_CHECK(number == std::floor(number), "expected an integer, got ", number);
    return static_cast<int64_t>(number);
  }
  int64_t big;
  bool lossless;
  TORCH_CHECK(napi_get_value_bigint_int64(env, value, &big, &lossless) == napi_ok && lossless, "expected an integer");
  return big;
}

double to_double(napi_env env, napi_value value) {
  double number;
  TORCH_CHECK(napi_get_value_double(env, value, &number) == napi_ok, "expected a number");
  return number;
}

bool to_bool(napi_env env, napi_value value) {
  bool flag;
  TORCH_CHECK(napi_get_value_bool(env, value, &flag) == napi_ok, "expected true or false");
  return flag;
}

std::string to_string(napi_env env, napi_value value) {
  TORCH_CHECK(Napi::Value(env, value).IsString(), "expected a string");
  return Napi::String(env, value).Utf8Value();
}

at::Scalar to_scalar(napi_env env, napi_value value) {
  napi_valuetype type;
  napi_typeof(env, value, &type);
  if (type == napi_boolean) return at::Scalar(to_bool(env, value));
  if (type == napi_bigint) return at::Scalar(to_int(env, value));
  const double number = to_double(env, value);
  if (number == std::floor(number) && std::abs(number) <= 9007199254740992.0) {
    return at::Scalar(static_cast<int64_t>(number));
  }
  return at::Scalar(number);
}

template <typename Element, typename Convert>
c10::List<Element> to_list(napi_env env, napi_value value, Convert convert) {
  uint32_t length;
  TORCH_CHECK(napi_get_array_length(env, value, &length) == napi_ok, "expected an array");
  c10::List<Element> list;
  list.reserve(length);
  for (uint32_t i = 0; i < length; i++) {
    napi_value element;
    napi_get_element(env, value, i, &element);
    list.push_back(convert(env, element));
  }
  return list;
}

c10::IValue to_ivalue(napi_env env, Instance& instance, Param param, napi_value value) {
  const auto tensor = [&](napi_env e, napi_value v) -> const at::Tensor& {
    uint32_t id;
    TORCH_CHECK(napi_get_value_uint32(e, v, &id) == napi_ok, "expected a tensor");
    return instance.tensors.get(id);
  };
  if (param.optional && is_nullish(env, value)) return {};
  switch (param.kind) {
    case Kind::kTensor: return tensor(env, value);
    case Kind::kInt: return to_int(env, value);
    case Kind::kFloat: return to_double(env, value);
    case Kind::kBool: return to_bool(env, value);
    case Kind::kScalar: return to_scalar(env, value);
    case Kind::kString: return to_string(env, value);
    case Kind::kScalarType: return to_int(env, value);
    case Kind::kLayout:
    case Kind::kMemoryFormat: return to_int(env, value);
    case Kind::kDevice: return c10::Device(to_string(env, value));
    case Kind::kTensorList: return to_list<at::Tensor>(env, value, tensor);
    case Kind::kOptionalTensorList:
      return to_list<std::optional<at::Tensor>>(env, value, [&](napi_env e, napi_value v) -> std::optional<at::Tensor> {
        if (is_nullish(e, v)) return std::nullopt;
        return tensor(e, v);
      });
    case Kind::kIntList: return to_list<int64_t>(env, value, to_int);
    case Kind::kFloatList: return to_list<double>(env, value, to_double);
    case Kind::kBoolList: return to_list<bool>(env, value, to_bool);
    case Kind::kGenerator: {
      const auto id = static_cast<size_t>(to_int(env, value));
      TORCH_CHECK(id < instance.generators.size() && instance.generators[id].defined(), "this generator was disposed");
      return instance.generators[id];
    }
  }
  TORCH_CHECK(false, "unreachable");
}

Napi::Value to_js(Napi::Env env, Instance& instance, c10::IValue&& value) {
  if (value.isTensor()) {
    at::Tensor tensor = std::move(value).toTensor();
    return tensor.defined() ? Napi::Number::New(env, instance.tensors.add(std::move(tensor))) : env.Null();
  }
  if (value.isInt()) return Napi::Number::New(env, static_cast<double>(value.toInt()));
  if (value.isDouble()) return Napi::Number::New(env, value.toDouble());
  if (value.isBool()) return Napi::Boolean::New(env, value.toBool());
  if (value.isString()) return Napi::String::New(env, value.toStringRef());
  if (value.isNone()) return env.Null();
  if (value.isScalar()) return Napi::Number::New(env, value.toScalar().toDouble());
  TORCH_CHECK(value.isTensorList(), "results of the type ", value.tagKind(), " are not supported");
  const auto list = std::move(value).toTensorVector();
  Napi::Array array = Napi::Array::New(env, list.size());
  for (uint32_t i = 0; i < list.size(); i++) array[i] = Napi::Number::New(env, instance.tensors.add(list[i]));
  return array;
}

// Calls body(tensor, index of its argument) for every tensor among the arguments, those in lists included.
template <typename Body>
void each_tensor(const std::vector<c10::IValue>& stack, Body body) {
  for (size_t i = 0; i < stack.size(); i++) {
    if (stack[i].isTensor()) {
      if (stack[i].toTensor().defined()) body(stack[i].toTensor(), i);
    } else if (stack[i].isTensorList()) {
      for (const at::Tensor& tensor : stack[i].toTensorVector()) body(tensor, i);
    }
  }
}

// Refuses tensors of several devices, except single numbers on the CPU, which operators take anywhere.
void require_one_device(const std::vector<c10::IValue>& stack, const c10::FunctionSchema& schema) {
  std::optional<at::Device> first;
  size_t place = 0;
  each_tensor(stack, [&](const at::Tensor& tensor, size_t i) {
    const at::Device device = tensor.device();
    if (tensor.dim() == 0 && device.is_cpu()) return;
    if (!first) first = device, place = i;
    TORCH_CHECK(*first == device, "its tensors are on several devices: ", schema.arguments()[place].name(), " on ", *first, " and ",
                schema.arguments()[i].name(), " on ", device, "; move one of them with .to()");
  });
}

// The device that a call runs on: that of its tensors, else the one that is named.
at::Device device_of(const Op& op, const std::vector<c10::IValue>& stack, at::Device fallback) {
  std::optional<at::Device> found;
  each_tensor(stack, [&](const at::Tensor& tensor, size_t) {
    if (!found) found = tensor.device();
  });
  if (found) return *found;
  return op.device >= 0 && stack[op.device].isDevice() ? stack[op.device].toDevice() : fallback;
}

// Runs an operator that draws numbers from a seeded generator. These are on the CPU, so that equal seeds give equal numbers on every device:
// the operator runs there, and its result is copied.
void call_seeded(const Op& op, std::vector<c10::IValue>& stack, at::Device device) {
  if (op.device >= 0) stack[op.device] = at::Device(at::kCPU);
  const c10::IValue first = stack[0];
  for (size_t i = 0; i < stack.size(); i++) {
    if (!stack[i].isTensor() || !stack[i].toTensor().defined()) continue;
    const at::Tensor& tensor = stack[i].toTensor();
    stack[i] = i == 0 && op.in_place ? at::empty(tensor.sizes(), tensor.options().device(at::kCPU)) : tensor.to(at::kCPU);
  }
  op.handle.callBoxed(stack);
  if (op.in_place) {
    first.toTensor().copy_(stack[0].toTensor());
  } else {
    stack[0] = stack[0].toTensor().to(device);
  }
}

std::string shapes_of(const std::vector<c10::IValue>& stack, const c10::FunctionSchema& schema) {
  std::ostringstream out;
  for (size_t i = 0; i < stack.size(); i++) {
    if (!stack[i].isTensor() || !stack[i].toTensor().defined()) continue;
    const auto& tensor = stack[i].toTensor();
    out << (out.tellp() > 0 ? ", " : "") << schema.arguments()[i].name() << " " << tensor.scalar_type() << tensor.sizes();
  }
  return out.str();
}

}  // namespace

Op resolve(const std::string& name, const std::string& overload) {
  auto handle = c10::Dispatcher::singleton().findSchema({name, overload});
  TORCH_CHECK(handle.has_value(), "this LibTorch has no operator ", name, overload.empty() ? "" : "." + overload);
  const auto& returns = handle->schema().returns();
  const bool in_place = returns.size() == 1 && returns[0].alias_info() && returns[0].alias_info()->isWrite();
  const bool moves = name == "aten::copy_" || name == "aten::_to_copy";
  Op op{overload.empty() ? name : name + "." + overload, *handle, {}, in_place, true, moves, -1, -1};
  for (const auto& argument : handle->schema().arguments()) {
    const Param param = param_of(argument);
    const int index = static_cast<int>(op.params.size());
    if (param.kind == Kind::kDevice) op.device = index;
    if (param.kind == Kind::kGenerator) op.generator = index;
    if (param.kind == Kind::kTensor || param.kind == Kind::kTensorList) op.makes = false;
    op.params.push_back(param);
  }
  op.makes = op.makes && op.device >= 0;
  return op;
}

Napi::Value call(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Instance& self = instance(env);
  const uint32_t index = info[0].As<Napi::Number>().Uint32Value();
  if (index >= self.ops.size()) {
    Napi::RangeError::New(env, "there is no operator with this index").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  const Op& op = self.ops[index];
  std::vector<c10::IValue> inputs;
  return guarded(
      env, op.name, [&] { return shapes_of(inputs, op.handle.schema()); },
      [&]() -> Napi::Value {
        std::vector<c10::IValue> stack;
        stack.reserve(op.params.size() + 2);
        for (size_t i = 0; i < op.params.size(); i++) {
          try {
            stack.push_back(to_ivalue(env, self, op.params[i], info[i + 1]));
          } catch (const c10::Error& error) {
            TORCH_CHECK(false, "argument '", op.handle.schema().arguments()[i].name(), "': ", error.what_without_backtrace());
          }
        }
        try {
          if (op.makes && stack[op.device].isNone()) stack[op.device] = self.device;
          if (!op.moves) require_one_device(stack, op.handle.schema());
          const at::Device device = op.generator >= 0 || op.moves ? device_of(op, stack, self.device) : self.device;
          const bool seeded = op.generator >= 0 && !stack[op.generator].isNone();
          if (op.generator >= 0 && !seeded) stack[op.generator] = random_of(self, device);
          if (op.moves && op.in_place && stack[1].toTensor().device() != device) count_move(self, device);
          if (seeded && !device.is_cpu()) {
            call_seeded(op, stack, device);
          } else {
            op.handle.callBoxed(stack);
          }
          if (op.moves && !op.in_place && stack[0].toTensor().device() != device) count_move(self, stack[0].toTensor().device());
        } catch (...) {
          // The call consumes the stack: the tensors are converted again, for the error message only.
          for (size_t i = 0; i < op.params.size(); i++) inputs.push_back(to_ivalue(env, self, op.params[i], info[i + 1]));
          throw;
        }
        if (stack.empty() || op.in_place) return env.Undefined();
        if (stack.size() == 1) return to_js(env, self, std::move(stack[0]));
        Napi::Array array = Napi::Array::New(env, stack.size());
        for (uint32_t i = 0; i < stack.size(); i++) array[i] = to_js(env, self, std::move(stack[i]));
        return array;
      });
}

}  // namespace graft
