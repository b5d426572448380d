// Two upsampled maps added: offsets and sizes that every implementation shares.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::upsample_add {

// [K, height, width]
struct Images {
  int64_t height;
  int64_t width;

  SOLO_ATTN_HOST_DEVICE int64_t pixels() const { return height * width; }
  // Offset of image k; row numbers count through all images.
  SOLO_ATTN_HOST_DEVICE int64_t image(int64_t k) const { return k * pixels(); }
  SOLO_ATTN_HOST_DEVICE int64_t row(int64_t r) const { return r * width; }
};

}  // namespace solo_attn::upsample_add
