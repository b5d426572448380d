// Masks as bits, 64 pixels to a word: bit b of word w is pixel 64 w + b.
#pragma once

#include <cstdint>
#include <cstring>

#include "pack.h"
#include "simd.h"

namespace solo_attn {

#if defined(SOLO_ATTN_X86)
SOLO_ATTN_AVX2 inline uint64_t pack64_avx2(const uint8_t* bytes) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32));
  const auto low_zeros = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, zero)));
  const auto high_zeros = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, zero)));
  return ~(static_cast<uint64_t>(high_zeros) << 32 | low_zeros);
}

SOLO_ATTN_AVX512 inline uint64_t pack64_avx512(const uint8_t* bytes) {
  const __m512i x = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(x, x);
}
#endif

inline uint64_t pack64_plain(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int octet = 0; octet < 8; ++octet) {
    uint64_t x;
    std::memcpy(&x, bytes + 8 * octet, 8);
    word |= static_cast<uint64_t>(pack8(x)) << (8 * octet);
  }
  return word;
}

// 64 bytes, one per pixel; any value other than 0 is a set pixel.
template <Isa isa>
SOLO_ATTN_INLINE uint64_t pack64(const uint8_t* bytes) {
#if defined(SOLO_ATTN_X86)
  if constexpr (isa == Isa::avx512) return pack64_avx512(bytes);
  if constexpr (isa == Isa::avx2) return pack64_avx2(bytes);
#endif
  return pack64_plain(bytes);
}

template <Isa isa>
SOLO_ATTN_INLINE void pack_row(const uint8_t* bytes, int64_t pixels, uint64_t* words) {
  const int64_t whole = pixels / 64;
  for (int64_t w = 0; w < whole; ++w) words[w] = pack64<isa>(bytes + 64 * w);
  if (pixels % 64 != 0) {
    uint8_t tail[64] = {};
    std::memcpy(tail, bytes + 64 * whole, pixels % 64);
    words[whole] = pack64<isa>(tail);
  }
}

template <Isa isa>
SOLO_ATTN_INLINE int64_t popcount(uint64_t x) {
#if defined(__GNUC__)
  // Plain x86-64 has no popcount instruction, and GCC would call a function.
  if constexpr (isa != Isa::plain) return __builtin_popcountll(x);
#endif
  x -= x >> 1 & 0x5555555555555555;
  x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
  return static_cast<int64_t>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
}

}  // namespace solo_attn
