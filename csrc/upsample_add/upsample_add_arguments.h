// Checks of the arguments of the backward pass, which every implementation makes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../common/cells.h"
#include "../common/check.h"
#include "../common/describe.h"

namespace solo_attn::upsample_add {

inline void check_backward(const Tensor& grad, const std::vector<int64_t>& coarse_size,
                           const std::vector<int64_t>& attention_size) {
  check(grad.dim() == 3 && grad.size(1) > 0 && grad.size(2) > 0,
        "upsample_add_bwd: expected grad of shape [K, H, W] with H, W >= 1, got ", shape_of(grad));
  check_size("upsample_add_bwd", "coarse_size", coarse_size);
  check(attention_size.size() == 2 && attention_size[0] >= 0 && attention_size[1] >= 0,
        "upsample_add_bwd: expected attention_size (height, width), 0 without attention, got ",
        described(attention_size));
}

}  // namespace solo_attn::upsample_add
