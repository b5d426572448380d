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

SOLO_ATTN_AVX2 inline void unpack64_avx2(uint64_t word, uint8_t* bytes) {
  // Byte i of each half gets the octet that its bit is in, and keeps that bit only.
  const __m256i octet = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  for (int half = 0; half < 2; ++half) {
    const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(word >> (32 * half)));
    const __m256i mine = _mm256_and_si256(_mm256_shuffle_epi8(all, octet), bit);
    const __m256i set = _mm256_min_epu8(mine, _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 32 * half), set);
  }
}

SOLO_ATTN_AVX512 inline void unpack64_avx512(uint64_t word, uint8_t* bytes) {
  _mm512_storeu_si512(bytes, _mm512_maskz_set1_epi8(word, 1));
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

inline void unpack64_plain(uint64_t word, uint8_t* bytes) {
  for (int octet = 0; octet < 8; ++octet) {
    // Byte i keeps only bit i; adding 127 then sets bit 7 if it is set, without a carry into the next byte.
    uint64_t x = (word >> (8 * octet) & 255) * 0x0101010101010101 & 0x8040201008040201;
    x = (x + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101;
    std::memcpy(bytes + 8 * octet, &x, 8);
  }
}

// Expands 64 bits to 64 bytes of 0 or 1.
template <Isa isa>
SOLO_ATTN_INLINE void unpack64(uint64_t word, uint8_t* bytes) {
#if defined(SOLO_ATTN_X86)
  if constexpr (isa == Isa::avx512) return unpack64_avx512(word, bytes);
  if constexpr (isa == Isa::avx2) return unpack64_avx2(word, bytes);
#endif
  unpack64_plain(word, bytes);
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
