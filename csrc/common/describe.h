// Describes a tensor that was given, for messages, in PyTorch's words.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <ostream>
#include <vector>

namespace solo_attn {

// PyTorch's C++ name for dtypes that no op uses.
inline const char* dtype_name(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline const char* dtype_name(const torch::stable::Tensor& x) { return dtype_name(x.scalar_type()); }

// Texts are made only when a message is written: made in every call, they would take longer than its checks.
// These are arguments of check(), and do not outlive its call.
struct DeviceName {
  const torch::stable::Tensor& of;
};
struct ShapeOf {
  const torch::stable::Tensor& of;
};
struct Described {
  const torch::stable::Tensor& of;
};
struct SizeOf {
  const std::vector<int64_t>& of;
};

inline std::ostream& operator<<(std::ostream& text, DeviceName device) {
  if (device.of.is_cpu()) return text << "cpu";
  if (device.of.is_cuda()) return text << "cuda:" << device.of.get_device_index();
  return text << "another device";
}

inline std::ostream& operator<<(std::ostream& text, ShapeOf shape) {
  text << "[";
  for (int64_t d = 0; d < shape.of.dim(); ++d) text << (d > 0 ? ", " : "") << shape.of.size(d);
  return text << "] (" << shape.of.dim() << " dims)";
}

inline std::ostream& operator<<(std::ostream& text, Described x) {
  return text << dtype_name(x.of) << " " << ShapeOf{x.of} << " on " << DeviceName{x.of};
}

inline std::ostream& operator<<(std::ostream& text, SizeOf size) {
  text << "(";
  for (size_t d = 0; d < size.of.size(); ++d) text << (d > 0 ? ", " : "") << size.of[d];
  return text << ")";
}

inline DeviceName device_name(const torch::stable::Tensor& x) { return {x}; }

// As in "[2, 64, 40] (3 dims)".
inline ShapeOf shape_of(const torch::stable::Tensor& x) { return {x}; }

// As in "float32 [2, 64, 40] (3 dims) on cpu".
inline Described described(const torch::stable::Tensor& x) { return {x}; }

// As in "(48, 64)".
inline SizeOf described(const std::vector<int64_t>& size) { return {size}; }

}  // namespace solo_attn
