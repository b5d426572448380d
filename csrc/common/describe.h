// How messages name what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>

namespace solo_attn {

inline const char* dtype_name(const torch::stable::Tensor& x) {
  return torch::headeronly::toString(x.scalar_type());
}

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

}  // namespace solo_attn
