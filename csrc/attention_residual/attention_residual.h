// The attention residual: offsets and sizes that every implementation shares. Offsets pass 2^31 at eight
// images.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::attention_residual {

struct Sizes {
  int64_t batch;
  int64_t channels;
  int64_t side;
  int64_t height;
  int64_t width;

  SOLO_ATTN_HOST_DEVICE int64_t cells() const { return side * side; }
  SOLO_ATTN_HOST_DEVICE int64_t pixels() const { return height * width; }
  // Offset of cell n of image b in [B, N, H, W].
  SOLO_ATTN_HOST_DEVICE int64_t logits_offset(int64_t b, int64_t n) const {
    return (b * cells() + n) * pixels();
  }
  // Offset of image b in [B, C, S, S].
  SOLO_ATTN_HOST_DEVICE int64_t features_offset(int64_t b) const { return b * channels * cells(); }
};

}  // namespace solo_attn::attention_residual
