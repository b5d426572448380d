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

// `there`: whether it is on the device of the first one.
inline void check_map(const char* op, const Tensor& map, const Tensor& first, bool there) {
  check(there && map.dim() == 4 && map.scalar_type() == first.scalar_type(), op,
        ": expected maps of shape [B, C, h, w] and of the dtype and device of the first, ", described(first),
        ", got ", described(map));
}

// `there`: whether both are on the device of the maps.
inline void check_weights(const char* op, const Tensor& weights, const Tensor& biases, const Tensor& maps,
                          bool there) {
  check(there && weights.dim() == 2 && weights.size(1) == maps.size(1) && biases.dim() == 1 &&
            biases.size(0) == weights.size(0) && weights.scalar_type() == maps.scalar_type() &&
            biases.scalar_type() == maps.scalar_type(),
        op, ": expected weights [N, C] and biases [N] of the dtype and device of maps ", described(maps),
        ", got ", described(weights), " and ", described(biases));
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
