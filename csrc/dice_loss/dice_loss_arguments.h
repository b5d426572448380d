// What the forward and the backward pass are given, as every implementation checks it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../common/cells.h"
#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"

namespace solo_attn::dice_loss {

inline void check_arguments(const Tensor& coarse, const std::optional<Tensor>& attention,
                            const Tensor& targets) {
  check_cells("dice_loss", coarse, attention);
  const int64_t count = coarse.size(0);
  check(targets.dim() == 3 && targets.size(0) == count && targets.size(1) > 0 && targets.size(2) > 0,
        "dice_loss: expected targets of shape [K, H, W] with H, W >= 1, K = ", count,
        " as coarse_logits has, got ", shape_of(targets));
  check(targets.scalar_type() == ScalarType::Bool || targets.scalar_type() == ScalarType::Byte,
        "dice_loss: expected targets of dtype bool or uint8, got ", dtype_name(targets));
  check(same_device(targets, coarse), "dice_loss: expected targets on coarse_logits's device ",
        device_name(coarse), ", got ", device_name(targets));
}

inline void check_backward(const Tensor& grad, const Tensor& coarse, const std::optional<Tensor>& attention,
                           const Tensor& targets, const Tensor& sums) {
  check_arguments(coarse, attention, targets);
  const int64_t count = coarse.size(0);
  const ScalarType wide = accumulator_dtype(coarse.scalar_type());
  check(grad.dim() == 1 && grad.size(0) == count && grad.scalar_type() == wide && same_device(grad, coarse),
        "dice_loss_bwd: expected grad of shape [K], K = ", count, ", and of the losses' dtype and device, ",
        dtype_name(wide), " on ", device_name(coarse), ", got ", described(grad));
  check(sums.dim() == 2 && sums.size(0) == count && sums.size(1) == 2 && sums.scalar_type() == wide &&
            same_device(sums, coarse),
        "dice_loss_bwd: expected sums of shape [K, 2], K = ", count,
        ", and of the losses' dtype and device, ", dtype_name(wide), " on ", device_name(coarse), ", got ",
        described(sums));
}

}  // namespace solo_attn::dice_loss
