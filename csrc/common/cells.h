// Checks of the arguments of ops on chosen cells.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "check.h"
#include "describe.h"
#include "dtypes.h"

namespace solo_attn {

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline void check_cells(const char* op, const Tensor& coarse, const std::optional<Tensor>& attention) {
  check(coarse.dim() == 3 && coarse.size(1) > 0 && coarse.size(2) > 0, op,
        ": expected coarse_logits of shape [K, h, w] with h, w >= 1, got ", shape_of(coarse));
  if (!attention) return;
  const int64_t count = coarse.size(0);
  check(attention->dim() == 3 && attention->size(0) == count && attention->size(1) > 0 &&
            attention->size(1) == attention->size(2),
        op, ": expected attention of shape [K, S, S] with S >= 1, K = ", count, " as coarse_logits has, got ",
        shape_of(*attention));
  check(attention->scalar_type() == coarse.scalar_type() && same_device(*attention, coarse), op,
        ": expected attention of coarse_logits's dtype and device, ", described(coarse), ", got ",
        described(*attention));
}

inline void check_size(const char* op, const char* name, const std::vector<int64_t>& size) {
  check(size.size() == 2 && size[0] > 0 && size[1] > 0, op, ": expected ", name,
        " (height, width) of at least 1, got ", described(size));
}

}  // namespace solo_attn
