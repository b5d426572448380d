// Packs bytes into bits.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace solo_attn {

// Bit b is set if byte b of x, the lowest first, is not 0.
SOLO_ATTN_HOST_DEVICE inline uint32_t pack8(uint64_t x) {
  x |= x >> 4;  // bit 0 of each byte: whether any of its bits is set
  x |= x >> 2;
  x |= x >> 1;
  x &= 0x0101010101010101;
  // The multiplication moves bit 0 of byte i to bit 56 + i; no two partial products overlap, so there is no
  // carry.
  return static_cast<uint32_t>((x * 0x0102040810204080) >> 56);
}

}  // namespace solo_attn
