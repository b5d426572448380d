// Bilinear upsampling row by row: only two rows upsampled in x are kept, those of the current output row.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "bilinear.h"
#include "check.h"
#include "scratch.h"
#include "sigmoid.h"
#include "simd.h"

namespace solo_attn {

// The taps of one axis, as tables for vectorised loops, as long as whole vectors. Where a sample position is
// that of an input, this input is both taps, with weights of 1/2: a neighbour that may be infinite or NaN is
// not multiplied by 0.
template <class T>
struct Taps {
  const int32_t* low;
  const int32_t* high;
  const T* weight;
  int64_t in;
  int64_t out;
};

template <class T>
class TapTable {
 public:
  TapTable(int64_t in, int64_t out)
      : in_(in),
        out_(out),
        low_(scratch<int32_t>(padded(out))),
        high_(scratch<int32_t>(padded(out))),
        weight_(scratch<T>(padded(out))) {
    check(in <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 rows and columns, got ", in);
    TapWalk<T> walk(in, out);
    Tap<T> tap{};
    for (int64_t d = 0; d < padded(out); ++d) {
      if (d < out) tap = walk.next();
      low_[d] = static_cast<int32_t>(tap.low);
      high_[d] = static_cast<int32_t>(tap.weight == 0 ? tap.low : tap.high);
      weight_[d] = tap.weight == 0 ? T(0.5) : tap.weight;
    }
  }
  Taps<T> view() const { return {low_.get(), high_.get(), weight_.get(), in_, out_}; }

 private:
  int64_t in_, out_;
  Scratch<int32_t> low_, high_;
  Scratch<T> weight_;
};

// Both are exactly a where a = b, since the sum of the two weights rounds to 1. `mix` also keeps an infinity
// that both taps have; `lerp`, for probabilities, takes one operation less.
template <class T>
SOLO_ATTN_INLINE T mix(T a, T b, T weight) {
  return (1 - weight) * a + weight * b;
}
template <class T>
SOLO_ATTN_INLINE T lerp(T a, T b, T weight) {
  return a + weight * (b - a);
}

// Vector loads may read this many elements past the end of the input row: allocate them.
constexpr int64_t kSlack = 32;

#if defined(SOLO_ATTN_X86)
// from[index[0..15]], index ascending. Adjacent outputs have adjacent inputs, so two loads and a permutation
// usually replace the sixteen loads of a gather.
SOLO_ATTN_AVX512 inline __m512 take_avx512(const float* from, const int32_t* index) {
  const __m512i places = _mm512_loadu_si512(index);
  const int32_t first = index[0];
  if (index[15] - first >= 32)
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, places, from, 4);  // unmasked, GCC warns
  const __m512 low = _mm512_loadu_ps(from + first), high = _mm512_loadu_ps(from + first + 16);
  return _mm512_permutex2var_ps(low, _mm512_sub_epi32(places, _mm512_set1_epi32(first)), high);
}

SOLO_ATTN_AVX2 inline __m256 take_avx2(const float* from, const int32_t* index) {
  const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  const int32_t first = index[0];
  if (index[7] - first >= 8) return _mm256_i32gather_ps(from, places, 4);
  const __m256i offsets = _mm256_sub_epi32(places, _mm256_set1_epi32(first));
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + first), offsets);
}

// out[x] = mix of `from` at the taps of x, in the vectors that hold columns [begin, end). In an enlarged row
// all taps of a vector are in one vector, unless it is enlarged by a few columns only.
SOLO_ATTN_AVX512 inline void mix_taps_avx512(const float* from, const Taps<float>& taps, int64_t begin,
                                             int64_t end, float* out) {
  for (int64_t x = vector_begin(begin); x < end; x += 16) {
    const __m512 weight = _mm512_loadu_ps(taps.weight + x);
    const int32_t first = taps.low[x];
    __m512 low, high;
    if (taps.high[x + 15] - first < 16) {
      const __m512i base = _mm512_set1_epi32(first);
      const __m512i near = _mm512_sub_epi32(_mm512_loadu_si512(taps.low + x), base);
      const __m512i far = _mm512_sub_epi32(_mm512_loadu_si512(taps.high + x), base);
      const __m512 all = _mm512_loadu_ps(from + first);
      low = _mm512_maskz_permutexvar_ps(0xffff, near, all);
      high = _mm512_maskz_permutexvar_ps(0xffff, far, all);
    } else {
      low = take_avx512(from, taps.low + x);
      high = take_avx512(from, taps.high + x);
    }
    low = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(1), weight), low);
    _mm512_storeu_ps(out + x, _mm512_fmadd_ps(weight, high, low));
  }
}

SOLO_ATTN_AVX2 inline void mix_taps_avx2(const float* from, const Taps<float>& taps, int64_t begin,
                                         int64_t end, float* out) {
  for (int64_t x = vector_begin(begin); x < end; x += 8) {
    const __m256 weight = _mm256_loadu_ps(taps.weight + x);
    const __m256 low = _mm256_mul_ps(_mm256_sub_ps(_mm256_set1_ps(1), weight), take_avx2(from, taps.low + x));
    _mm256_storeu_ps(out + x, _mm256_fmadd_ps(weight, take_avx2(from, taps.high + x), low));
  }
}

// sum[i] += part[i] * from[place[i]] in the vectors of `count` elements, place ascending.
SOLO_ATTN_AVX512 inline void add_taken_avx512(const float* from, const int32_t* place, const float* part,
                                              int64_t count, float* sum) {
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 taken = take_avx512(from, place + i);
    _mm512_storeu_ps(sum + i, _mm512_fmadd_ps(_mm512_loadu_ps(part + i), taken, _mm512_loadu_ps(sum + i)));
  }
}

SOLO_ATTN_AVX2 inline void add_taken_avx2(const float* from, const int32_t* place, const float* part,
                                          int64_t count, float* sum) {
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 taken = take_avx2(from, place + i);
    _mm256_storeu_ps(sum + i, _mm256_fmadd_ps(_mm256_loadu_ps(part + i), taken, _mm256_loadu_ps(sum + i)));
  }
}
#endif

// One row upsampled in x, in columns [begin, end): out[x] = mix of `from` at the taps of x. `out` is as long
// as whole vectors; other columns of those that hold the first and the last one may be overwritten.
template <Isa isa, class T>
SOLO_ATTN_INLINE void mix_taps(const T* __restrict from, const Taps<T>& taps, int64_t begin, int64_t end,
                               T* __restrict out) {
#if defined(SOLO_ATTN_X86)
  if constexpr (isa == Isa::avx512 && std::is_same_v<T, float>) {
    return mix_taps_avx512(from, taps, begin, end, out);
  }
  if constexpr (isa == Isa::avx2 && std::is_same_v<T, float>) {
    return mix_taps_avx2(from, taps, begin, end, out);
  }
#endif
  for (int64_t x = begin; x < end; ++x) out[x] = mix(from[taps.low[x]], from[taps.high[x]], taps.weight[x]);
}

// The tables and `sum` are as long as whole vectors, and what `sum` has after `count` elements has no
// meaning.
template <Isa isa, class T>
SOLO_ATTN_INLINE void add_taken(const T* __restrict from, const int32_t* __restrict place,
                                const T* __restrict part, int64_t count, T* __restrict sum) {
#if defined(SOLO_ATTN_X86)
  if constexpr (isa == Isa::avx512 && std::is_same_v<T, float>) {
    return add_taken_avx512(from, place, part, count, sum);
  }
  if constexpr (isa == Isa::avx2 && std::is_same_v<T, float>) {
    return add_taken_avx2(from, place, part, count, sum);
  }
#endif
  for (int64_t i = 0; i < count; ++i) sum[i] += part[i] * from[place[i]];
}

// A map upsampled in x, in columns [begin, end) of the result, of which two rows are held. Rows are requested
// from top to bottom, so each one is upsampled once.
template <class S, class T>
struct RowPair {
  const S* map;  // nullptr: no map, which counts as 0
  Taps<T> rows;
  Taps<T> columns;
  T* store;  // size(): one row as T, then the two
  int64_t begin;
  int64_t end;
  int64_t held[2];

  static int64_t size(int64_t in, int64_t out) { return padded(in) + kSlack + 2 * padded(out); }

  static RowPair over(const S* map, Taps<T> rows, Taps<T> columns, T* store) {
    return {map, rows, columns, store, 0, columns.out, {-1, -1}};
  }

  template <Isa isa>
  SOLO_ATTN_INLINE const T* row(int64_t i) {
    T* __restrict out = store + padded(columns.in) + kSlack + (i & 1) * padded(columns.out);
    if (held[i & 1] == i) return out;
    held[i & 1] = i;
    T* __restrict wide = store;
    const S* __restrict from = map + i * columns.in;
    const int64_t last = columns.high[end - 1];
    for (int64_t x = columns.low[begin]; x <= last; ++x) wide[x] = static_cast<T>(from[x]);
    mix_taps<isa>(wide, columns, begin, end, out);
    return out;
  }
};

// sigmoid(up(coarse) + up(attention)) of output row y, in the columns of `coarse`.
template <Isa isa, class S, class T>
SOLO_ATTN_INLINE void probability_row(RowPair<S, T>& coarse, RowPair<S, T>& attention, int64_t y,
                                      T* __restrict out) {
  const T* __restrict above = coarse.template row<isa>(coarse.rows.low[y]);
  const T* __restrict below = coarse.template row<isa>(coarse.rows.high[y]);
  const T weight = coarse.rows.weight[y];
  const int64_t end = coarse.end;
  if (attention.map == nullptr) {
    for (int64_t x = coarse.begin; x < end; ++x) out[x] = sigmoid(mix(above[x], below[x], weight));
    return;
  }
  const T* __restrict upper = attention.template row<isa>(attention.rows.low[y]);
  const T* __restrict lower = attention.template row<isa>(attention.rows.high[y]);
  const T other = attention.rows.weight[y];
  for (int64_t x = coarse.begin; x < end; ++x) {
    out[x] = sigmoid(mix(above[x], below[x], weight) + mix(upper[x], lower[x], other));
  }
}

}  // namespace solo_attn
