// Checks of the arguments that every compiled attention_residual makes, and the in-place variant's result.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "attention_residual.h"

namespace solo_attn::attention_residual {

// `there`: whether both tensors are on the device of the implementation.
inline void check_arguments(const char* what, const Tensor& logits, const Tensor& features, bool there) {
  check(features.dim() == 4 && features.size(2) == features.size(3),
        "attention_residual: expected grid_features of shape [B, C, S, S], got ", shape_of(features));
  check(logits.dim() == 4 && logits.size(0) == features.size(0) &&
            logits.size(1) == features.size(2) * features.size(2) && logits.size(2) > 0 &&
            logits.size(3) > 0 && logits.scalar_type() == features.scalar_type() && there,
        "attention_residual: expected ", what,
        " of shape [B, S*S, H, W] with H, W >= 1, dtype and device for grid_features ", described(features),
        ", got ", described(logits));
}

inline Sizes sizes(const Tensor& logits, const Tensor& features) {
  return {features.size(0), features.size(1), features.size(2), logits.size(2), logits.size(3)};
}

// Calls add(in, out) with contiguous tensors, which may be the same one, and leaves the result in
// mask_logits.
template <class Add>
void write_over(Tensor& mask_logits, const Add& add) {
  for (int64_t d = 0; d < 4; ++d) {
    check(mask_logits.size(d) <= 1 || mask_logits.stride(d) != 0,
          "attention_residual: expected mask_logits whose elements lie apart, to be written over, got a dim "
          "of size ",
          mask_logits.size(d), " that repeats a single memory location");
  }
  if (mask_logits.is_contiguous()) {
    add(mask_logits, mask_logits);
    // Autograd counts writes to a tensor and its views, but does not see writes through a pointer.
    Tensor nothing = torch::stable::narrow(mask_logits, 0, 0, 0);
    torch::stable::zero_(nothing);
  } else {
    Tensor whole = torch::stable::contiguous(mask_logits);
    add(whole, whole);
    torch::stable::copy_(mask_logits, whole);
  }
}

}  // namespace solo_attn::attention_residual
