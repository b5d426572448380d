// Grid attention (docs/method.md, "Identities" step 5): the arithmetic that every implementation shares.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::grid_attention {

// The full map is symmetric: block (i, j) with i <= j is computed, and block (j, i) is its mirror image.
struct BlockPair {
  int64_t i;
  int64_t j;
};

SOLO_ATTN_HOST_DEVICE inline int64_t block_pairs(int64_t side) { return side * (side + 1) / 2; }

// In the order (0, 0), (0, 1), (1, 1), (0, 2), ...
SOLO_ATTN_HOST_DEVICE inline BlockPair block_pair(int64_t index) {
  int64_t j = 0;
  while (block_pairs(j + 1) <= index) ++j;
  return {index - block_pairs(j), j};
}

}  // namespace solo_attn::grid_attention
