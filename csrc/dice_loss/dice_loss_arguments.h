// Checks of the arguments of the forward and the backward pass, which every implementation makes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../common/cells.h"
#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"

namespace solo_attn::dice_loss {

// `first` is the coarse logits or the kernels; `name` is what messages call it.
inline void check_pixels(const Tensor& targets, const Tensor& first, const char* name) {
  check(targets.dim() == 3 && targets.size(0) == first.size(0) && targets.size(1) > 0 && targets.size(2) > 0,
        "dice_loss: expected targets of shape [K, H, W] with H, W >= 1, K = ", first.size(0), " as ", name,
        " has, got ", shape_of(targets));
  check(targets.scalar_type() == ScalarType::Bool || targets.scalar_type() == ScalarType::Byte,
        "dice_loss: expected targets of dtype bool or uint8, got ", dtype_name(targets));
  check(same_device(targets, first), "dice_loss: expected targets on ", name, "'s device ",
        device_name(first), ", got ", device_name(targets));
}

inline void check_arguments(const Tensor& coarse, const std::optional<Tensor>& attention,
                            const Tensor& targets) {
  check_cells("dice_loss", coarse, attention);
  check_pixels(targets, coarse, "coarse_logits");
}

// For the form with factors, whose targets have the size of the features.
inline void check_targets(const Tensor& targets, const Tensor& kernels, const Tensor& features) {
  check_pixels(targets, kernels, "kernels");
  check(targets.size(1) == features.size(2) && targets.size(2) == features.size(3),
        "dice_loss: expected targets of features's size ", shape_of(features), ", got ", shape_of(targets));
}

// Of `count` rows, of `first` or of several such tensors.
inline void check_upstream(const Tensor& grad, const Tensor& sums, const Tensor& first, int64_t count) {
  const ScalarType wide = accumulator_dtype(first.scalar_type());
  check(grad.dim() == 1 && grad.size(0) == count && grad.scalar_type() == wide && same_device(grad, first),
        "dice_loss_bwd: expected grad of shape [K], K = ", count, ", and of the losses' dtype and device, ",
        dtype_name(wide), " on ", device_name(first), ", got ", described(grad));
  check(sums.dim() == 2 && sums.size(0) == count && sums.size(1) == 2 && sums.scalar_type() == wide &&
            same_device(sums, first),
        "dice_loss_bwd: expected sums of shape [K, 2], K = ", count,
        ", and of the losses' dtype and device, ", dtype_name(wide), " on ", device_name(first), ", got ",
        described(sums));
}

inline void check_backward(const Tensor& grad, const Tensor& coarse, const std::optional<Tensor>& attention,
                           const Tensor& targets, const Tensor& sums) {
  check_arguments(coarse, attention, targets);
  check_upstream(grad, sums, coarse, coarse.size(0));
}

}  // namespace solo_attn::dice_loss
