// Checks of the op's arguments that every implementation makes, and how run lengths are returned.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/cells.h"
#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"

namespace solo_attn::paste_masks {

using Size = std::vector<int64_t>;

struct Sizes {
  Size size, out_size, image_size, original_size;
};

inline void check_arguments(const Tensor& coarse, const std::optional<Tensor>& attention, const Sizes& s) {
  check_cells("paste_masks", coarse, attention);
  check_size("paste_masks", "size", s.size);
  check_size("paste_masks", "out_size", s.out_size);
  check_size("paste_masks", "image_size", s.image_size);
  check_size("paste_masks", "original_size", s.original_size);
  check(s.image_size[0] <= 4 * s.out_size[0] && s.image_size[1] <= 4 * s.out_size[1],
        "paste_masks: expected image_size within 4 x out_size ", described(s.out_size), ", got ",
        described(s.image_size));
}

// The texts concatenated, and the begin and end of each, on the CPU.
inline std::tuple<Tensor, Tensor> joined(const std::vector<std::string>& texts) {
  const auto count = static_cast<int64_t>(texts.size());
  const auto empty = [](const std::vector<int64_t>& shape, ScalarType dtype) {
    return torch::stable::empty(shape, dtype);
  };
  Tensor offsets = empty({count + 1}, ScalarType::Long);
  int64_t* offset = offsets.mutable_data_ptr<int64_t>();
  offset[0] = 0;
  for (int64_t k = 0; k < count; ++k) offset[k + 1] = offset[k] + static_cast<int64_t>(texts[k].size());
  Tensor counts = empty({offset[count]}, ScalarType::Byte);
  auto* text = static_cast<char*>(counts.mutable_data_ptr());
  for (int64_t k = 0; k < count; ++k) std::copy(texts[k].begin(), texts[k].end(), text + offset[k]);
  return {counts, offsets};
}

}  // namespace solo_attn::paste_masks
