// Checks of the arguments that every compiled grid_attention makes, except for the device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"

namespace solo_attn::grid_attention {

inline void check_features(const char* op, const Tensor& features) {
  check(features.dim() == 4 && features.size(2) == features.size(3), op,
        ": expected grid_features of shape [B, C, S, S], got ", shape_of(features));
}

// `there`: whether it is on the device of the features.
inline void check_list(const Tensor& cells, const Tensor& features, bool there) {
  check(cells.dim() == 2 && cells.size(1) == 2 && cells.scalar_type() == ScalarType::Long && there,
        "grid_attention: expected cells int64 of shape [K, 2] on ", device_name(features), ", got ",
        described(cells));
}

// `there`: whether it is on the device of the features.
inline void check_grad(const Tensor& grad, const Tensor& features, const std::optional<Tensor>& cells,
                       bool there) {
  const int64_t side = features.size(2);
  check(there && grad.scalar_type() == features.scalar_type() && grad.dim() == (cells ? 3 : 4) &&
            grad.size(0) == (cells ? cells->size(0) : features.size(0)) &&
            (cells || grad.size(1) == side * side) && grad.size(-1) == side && grad.size(-2) == side,
        "grid_attention_bwd: expected grad of the shape, dtype and device that grid_attention returns for "
        "grid_features ",
        described(features), ", got ", described(grad));
}

}  // namespace solo_attn::grid_attention
