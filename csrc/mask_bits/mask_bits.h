// Bits, areas and maskness (docs/method.md, "Inference" steps 3 and 4): the arithmetic that all
// implementations share.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::mask_bits {

// The mean probability of the set pixels; 0 if there is none.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T maskness(double sum, int64_t area) {
  return area == 0 ? T(0) : static_cast<T>(sum / static_cast<double>(area));
}

}  // namespace solo_attn::mask_bits
