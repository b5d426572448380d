// Products of two small matrices with packed rows and columns, in tiles of 12 x 32. Each element is summed
// over the depth in an order that does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "convert.h"
#include "simd.h"

namespace solo_attn {

// The tile is held in 24 of AVX-512's 32 registers; AVX2 computes it as four tiles of 6 x 16, in 12 of its
// 16.
constexpr int64_t kTileRows = 12;
constexpr int64_t kTileColumns = 32;
// This many products are summed before they are added to the total: long sums keep the precision of short
// ones.
constexpr int64_t kTileDepth = 64;

inline int64_t tiles(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }

// Columns [first, first + 32) of a row-major [depth, count] as [depth, 32]; columns after the last are 0.
template <Isa isa, class S, class T>
SOLO_ATTN_INLINE void pack_columns(const S* in, int64_t depth, int64_t count, int64_t first, T* out) {
  const int64_t some = std::min(kTileColumns, count - first);
  for (int64_t k = 0; k < depth; ++k, out += kTileColumns) {
    widen<isa>(in + k * count + first, some, out);
    for (int64_t c = some; c < kTileColumns; ++c) out[c] = 0;
  }
}

// The same for at most 12 arbitrary columns, as the rows of the left factor: [depth, 12].
template <class S, class T>
SOLO_ATTN_INLINE void pack_rows(const S* in, int64_t depth, int64_t stride, const int64_t* columns,
                                int64_t some, T* out) {
  for (int64_t k = 0; k < depth; ++k, out += kTileRows) {
    for (int64_t r = 0; r < some; ++r) out[r] = static_cast<T>(in[k * stride + columns[r]]);
    for (int64_t r = some; r < kTileRows; ++r) out[r] = 0;
  }
}

#if defined(SOLO_ATTN_X86)
SOLO_ATTN_AVX512 inline void tile_avx512(const float* a, const float* b, int64_t depth, float scale, bool add,
                                         float* out, int64_t stride) {
  __m512 sum[kTileRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns) {
    const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 x = _mm512_set1_ps(a[r]);
      sum[r][0] = _mm512_fmadd_ps(x, b0, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(x, b1, sum[r][1]);
    }
  }
  const __m512 s = _mm512_set1_ps(scale);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      float* to = out + r * stride + 16 * c;
      const __m512 x = _mm512_mul_ps(s, sum[r][c]);
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), x) : x);
    }
  }
}

SOLO_ATTN_AVX2 inline void tile_avx2(const float* a, const float* b, int64_t depth, float scale, bool add,
                                     float* out, int64_t stride) {
  __m256 sum[6][2];
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      const __m256 x = _mm256_broadcast_ss(a + r);
      sum[r][0] = _mm256_fmadd_ps(x, b0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, b1, sum[r][1]);
    }
  }
  const __m256 s = _mm256_set1_ps(scale);
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      float* to = out + r * stride + 8 * c;
      const __m256 x = _mm256_mul_ps(s, sum[r][c]);
      _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), x) : x);
    }
  }
}
#endif

// One tile: out = scale * rows . columns, plus the old value of out if `add`.
template <Isa isa, class T>
SOLO_ATTN_INLINE void tile(const T* a, const T* b, int64_t depth, T scale, bool add, T* out, int64_t stride) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<T, float> && isa == Isa::avx512) {
    return tile_avx512(a, b, depth, scale, add, out, stride);
  }
  if constexpr (std::is_same_v<T, float> && isa == Isa::avx2) {
    for (int64_t c = 0; c < kTileColumns; c += 16) {
      for (int64_t r = 0; r < kTileRows; r += 6) {
        tile_avx2(a + r, b + c, depth, scale, add, out + r * stride + c, stride);
      }
    }
    return;
  }
#endif
  constexpr int64_t kPart = 8;  // columns whose sums stay in registers
  for (int64_t r = 0; r < kTileRows; r += 2) {
    for (int64_t c = 0; c < kTileColumns; c += kPart) {
      T one[kPart] = {}, two[kPart] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const T x = a[k * kTileRows + r], y = a[k * kTileRows + r + 1];
        for (int64_t p = 0; p < kPart; ++p) one[p] += x * b[k * kTileColumns + c + p];
        for (int64_t p = 0; p < kPart; ++p) two[p] += y * b[k * kTileColumns + c + p];
      }
      T* to = out + r * stride + c;
      for (int64_t p = 0; p < kPart; ++p) to[p] = (add ? to[p] : T(0)) + scale * one[p];
      for (int64_t p = 0; p < kPart; ++p) to[stride + p] = (add ? to[stride + p] : T(0)) + scale * two[p];
    }
  }
}

// out[12, 32] = scale * rows[depth, 12]^T . columns[depth, 32].
template <Isa isa, class T>
SOLO_ATTN_INLINE void multiply(const T* rows, const T* columns, int64_t depth, T scale, T* out,
                               int64_t stride) {
  int64_t k = 0;
  do {
    const int64_t some = std::min(kTileDepth, depth - k);
    tile<isa>(rows + k * kTileRows, columns + k * kTileColumns, some, scale, k > 0, out, stride);
    k += kTileDepth;
  } while (k < depth);
}

}  // namespace solo_attn
