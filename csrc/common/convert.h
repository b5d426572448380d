// Conversion of rows of half precision to the accumulator type, and back with one rounding.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace solo_attn {

using torch::headeronly::Half;

#if defined(SOLO_ATTN_X86)
// The masked intrinsics, even where all lanes are meant: GCC 12 warns that the others read uninitialised
// values.
SOLO_ATTN_AVX512 inline void widen_half_avx512(const Half* in, int64_t count, float* out) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 some = count - k < 16 ? (1u << (count - k)) - 1 : 0xffff;
    _mm512_mask_storeu_ps(out + k, some, _mm512_maskz_cvtph_ps(some, _mm256_maskz_loadu_epi16(some, in + k)));
  }
}

SOLO_ATTN_AVX512 inline void narrow_half_avx512(const float* in, int64_t count, Half* out) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 some = count - k < 16 ? (1u << (count - k)) - 1 : 0xffff;
    _mm256_mask_storeu_epi16(
        out + k, some,
        _mm512_maskz_cvtps_ph(some, _mm512_maskz_loadu_ps(some, in + k), _MM_FROUND_TO_NEAREST_INT));
  }
}

SOLO_ATTN_AVX2 inline void widen_half_avx2(const Half* in, int64_t count, float* out) {
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    _mm256_storeu_ps(out + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + k))));
  }
  for (; k < count; ++k) out[k] = _cvtsh_ss(in[k].x);
}

SOLO_ATTN_AVX2 inline void narrow_half_avx2(const float* in, int64_t count, Half* out) {
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + k), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; k < count; ++k) out[k].x = _cvtss_sh(in[k], _MM_FROUND_TO_NEAREST_INT);
}
#endif

template <Isa isa, class S, class T>
SOLO_ATTN_INLINE void widen(const S* in, int64_t count, T* out) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<S, Half> && isa == Isa::avx512) return widen_half_avx512(in, count, out);
  if constexpr (std::is_same_v<S, Half> && isa == Isa::avx2) return widen_half_avx2(in, count, out);
#endif
  SOLO_ATTN_INDEPENDENT
  for (int64_t k = 0; k < count; ++k) out[k] = static_cast<T>(in[k]);
}

template <Isa isa, class S, class T>
SOLO_ATTN_INLINE void narrow(const T* in, int64_t count, S* out) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<S, Half> && isa == Isa::avx512) return narrow_half_avx512(in, count, out);
  if constexpr (std::is_same_v<S, Half> && isa == Isa::avx2) return narrow_half_avx2(in, count, out);
#endif
  SOLO_ATTN_INDEPENDENT
  for (int64_t k = 0; k < count; ++k) out[k] = static_cast<S>(in[k]);
}

}  // namespace solo_attn
