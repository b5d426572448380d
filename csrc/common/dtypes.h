// From a tensor's dtype to its C++ type, and the accumulator type of a C++ type.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "check.h"
#include "describe.h"

namespace solo_attn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float32 for half precision, otherwise the type itself.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the T of a float dtype: `using T = typename decltype(tag)::type;`.
template <class F>
auto dispatch_float(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Half:
      return f(Type<torch::headeronly::Half>{});
    case ScalarType::BFloat16:
      return f(Type<torch::headeronly::BFloat16>{});
    case ScalarType::Float:
      return f(Type<float>{});
    default:
      check(dtype == ScalarType::Double, op,
            ": expected a float dtype (float16, bfloat16, float32, float64), got ", dtype_name(dtype));
      return f(Type<double>{});
  }
}

inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool mask_dtype(const Tensor& masks) {
  const ScalarType dtype = masks.scalar_type();
  return dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Long;
}

}  // namespace solo_attn
