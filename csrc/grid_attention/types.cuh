// How the float types are multiplied, and what all kernels of grid_attention and attention_residual share.
#pragma once

#include <type_traits>

#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/launch.h"
#include "../common/ptx.h"

namespace solo_attn::grid_attention {

constexpr int kThreads = 128;  // of the kernels for chosen cells

// The type in which the gradient of chosen cells uses the tensor cores: half precision, and float32 where the
// caller allows tf32.
template <class S>
constexpr bool kTensorCores = sizeof(S) == 2 || std::is_same_v<S, Tf32>;

// dispatch_float, but with Tf32 in place of float32 where the caller allows that.
template <class F>
void dispatch_product(const char* op, ScalarType dtype, bool tf32, const F& f) {
  if (tf32 && dtype == ScalarType::Float) {
    f(Type<Tf32>{});
  } else {
    dispatch_float(op, dtype, f);
  }
}

// The type that S has in memory, for everything that is not a product.
template <class S>
using stored_t = std::conditional_t<std::is_same_v<S, Tf32>, float, S>;

template <class S>
const S* data(const Tensor& x) {
  return static_cast<const S*>(x.const_data_ptr());
}
template <class S>
S* data(Tensor& x) {
  return static_cast<S*>(x.mutable_data_ptr());
}

inline dim3 grid(const char* op, int64_t blocks) {
  check(blocks <= 0x7fffffff, op, ": expected sizes that need fewer than 2^31 blocks, got ", blocks);
  return dim3(static_cast<unsigned>(blocks));
}

template <class F>
void with_aligned(bool aligned, const F& f) {
  if (aligned) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

}  // namespace solo_attn::grid_attention
