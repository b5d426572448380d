// IoU of masks: the maths that every implementation shares.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::mask_iou {

// Rounded from double, as the reference does. Only for masks that meet: their union is not 0.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T iou(int64_t both, int64_t area, int64_t other) {
  return static_cast<T>(static_cast<double>(both) / static_cast<double>(area + other - both));
}

}  // namespace solo_attn::mask_iou
