// IoU of masks: the arithmetic that every implementation shares.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::mask_iou {

// Rounded from double, as in the reference. Only for masks that overlap: their union is not 0.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T iou(int64_t both, int64_t area, int64_t other) {
  return static_cast<T>(static_cast<double>(both) / static_cast<double>(area + other - both));
}

}  // namespace solo_attn::mask_iou
