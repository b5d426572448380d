// Describes a tensor that was given, for messages, in PyTorch's words.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
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

inline std::string device_name(const torch::stable::Tensor& x) {
  if (x.is_cpu()) return "cpu";
  return x.is_cuda() ? "cuda:" + std::to_string(x.get_device_index()) : "another device";
}

// As in "[2, 64, 40] (3 dims)".
inline std::string shape_of(const torch::stable::Tensor& x) {
  std::string text = "[";
  for (int64_t d = 0; d < x.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(x.size(d));
  return text + "] (" + std::to_string(x.dim()) + " dims)";
}

// As in "float32 [2, 64, 40] (3 dims) on cpu".
inline std::string described(const torch::stable::Tensor& x) {
  return std::string(dtype_name(x)) + " " + shape_of(x) + " on " + device_name(x);
}

// As in "(48, 64)".
inline std::string described(const std::vector<int64_t>& size) {
  std::string text = "(";
  for (size_t d = 0; d < size.size(); ++d) text += (d > 0 ? ", " : "") + std::to_string(size[d]);
  return text + ")";
}

}  // namespace solo_attn
