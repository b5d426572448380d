// Checks of the arguments that every compiled matrix_nms makes, except for the device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>

#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"

namespace solo_attn::matrix_nms {

inline void check_arguments(const Tensor& masks, const Tensor& labels, const Tensor& scores,
                            const std::string& kernel) {
  check(scores.dim() == 1, "matrix_nms: expected scores of shape [n], got ", shape_of(scores));
  const int64_t count = scores.size(0);
  check(labels.dim() == 1 && labels.size(0) == count && labels.scalar_type() == ScalarType::Long,
        "matrix_nms: expected labels of shape [n] and dtype int64, n = ", count, " as scores has, got ",
        dtype_name(labels), " ", shape_of(labels));
  check(masks.dim() == 2 && masks.size(0) == count,
        "matrix_nms: expected masks of shape [n, pixels] or [n, words], n = ", count, " as scores has, got ",
        shape_of(masks));
  check(mask_dtype(masks), "matrix_nms: expected masks of dtype bool, uint8 or int64, got ",
        dtype_name(masks));
  check(kernel == "gaussian" || kernel == "linear",
        "matrix_nms: expected kernel to be one of gaussian, linear, got '", kernel, "'");
}

}  // namespace solo_attn::matrix_nms
