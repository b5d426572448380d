// Bilinear upsampling on the CPU, row by row: along x once for each input row, then, for each output row,
// along y between two of those. That is one multiply-add per output pixel and input row, whatever the taps
// are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "bilinear.h"
#include "convert.h"
#include "scratch.h"
#include "simd.h"

namespace solo_attn {

// The taps of one axis, forward: output d is `near[d]` times input `low[d]` plus `far[d]` times the input
// after it, which is not read where `far[d]` is 0, since it may be infinite or NaN.
template <class T>
struct Axis {
  int64_t in;
  int64_t out;
  const int32_t* low;
  const T* near;
  const T* far;
};

template <class T>
class AxisTable {
 public:
  AxisTable(int64_t in, int64_t out)
      : in_(in),
        out_(out),
        low_(scratch<int32_t>(padded(out))),
        near_(scratch<T>(padded(out))),
        far_(scratch<T>(padded(out))) {
    TapWalk<T> walk(in, out);
    Tap<T> tap{};
    for (int64_t d = 0; d < padded(out); ++d) {
      if (d < out) tap = walk.next();
      low_[d] = static_cast<int32_t>(tap.low);
      near_[d] = T(1) - tap.weight;
      far_[d] = tap.weight;
    }
  }
  Axis<T> view() const { return {in_, out_, low_.get(), near_.get(), far_.get()}; }

 private:
  int64_t in_, out_;
  Scratch<int32_t> low_;
  Scratch<T> near_, far_;
};

// The taps of one axis, backward: input i sums outputs [begin[i], begin[i] + count[i]) with the weights from
// `weight[place[i]]` on.
template <class T>
struct Parts {
  int64_t in;
  int64_t out;
  const int64_t* begin;
  const int64_t* count;
  const int64_t* place;
  const T* weight;
};

template <class T>
class PartsTable {
 public:
  PartsTable(int64_t in, int64_t out) : in_(in), out_(out), begin_(in), count_(in), place_(in) {
    std::vector<Tap<T>> taps(out);
    TapWalk<T> walk(in, out);
    for (Tap<T>& tap : taps) tap = walk.next();
    weight_.reserve(2 * out);
    // The first output that is sampled at input i or after it, as bilinear_first: input i has a part only in
    // outputs [first[i - 1], first[i + 1]).
    std::vector<int64_t> first(in + 1);
    for (int64_t i = 1, d = 0; i <= in; first[i++] = d) {
      while (d < out && taps[d].low < i) ++d;
    }
    for (int64_t i = 0; i < in; ++i) {
      begin_[i] = first[std::max<int64_t>(i - 1, 0)];
      const int64_t end = first[i + 1];
      // Weights of 0 are left out: an infinite gradient of a neighbour must not become NaN here.
      while (begin_[i] < end && bilinear_part(i, taps[begin_[i]]) == 0) ++begin_[i];
      place_[i] = static_cast<int64_t>(weight_.size());
      for (int64_t d = begin_[i]; d < end; ++d) weight_.push_back(bilinear_part(i, taps[d]));
      count_[i] = end - begin_[i];
    }
  }
  Parts<T> view() const { return {in_, out_, begin_.data(), count_.data(), place_.data(), weight_.data()}; }

 private:
  int64_t in_, out_;
  std::vector<int64_t> begin_, count_, place_;
  std::vector<T> weight_;
};

#if defined(SOLO_ATTN_X86)
// In an upsampled axis, the inputs of 16 (8) adjacent outputs lie within 16 (8) of the first one.
SOLO_ATTN_AVX512 inline void expand_avx512(const float* line, Axis<float> x, float* out) {
  for (int64_t d = 0; d < x.out; d += 16) {
    const int32_t base = x.low[d];
    const __m512i lane = _mm512_sub_epi32(_mm512_loadu_si512(x.low + d), _mm512_set1_epi32(base));
    const __m512 weight = _mm512_loadu_ps(x.far + d);
    const __mmask16 some = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    const __m512 near = _mm512_maskz_permutexvar_ps(0xffff, lane, _mm512_loadu_ps(line + base));
    const __m512 far = _mm512_maskz_permutexvar_ps(some, lane, _mm512_loadu_ps(line + base + 1));
    const __m512 part = _mm512_mul_ps(far, weight);
    _mm512_storeu_ps(out + d, _mm512_fmadd_ps(near, _mm512_loadu_ps(x.near + d), part));
  }
}

SOLO_ATTN_AVX2 inline void expand_avx2(const float* line, Axis<float> x, float* out) {
  for (int64_t d = 0; d < x.out; d += 8) {
    const int32_t base = x.low[d];
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.low + d));
    const __m256i lane = _mm256_sub_epi32(low, _mm256_set1_epi32(base));
    const __m256 near = _mm256_permutevar8x32_ps(_mm256_loadu_ps(line + base), lane);
    const __m256 weight = _mm256_loadu_ps(x.far + d);
    const __m256 some = _mm256_cmp_ps(weight, _mm256_setzero_ps(), _CMP_NEQ_OQ);
    const __m256 far = _mm256_permutevar8x32_ps(_mm256_loadu_ps(line + base + 1), lane);
    const __m256 part = _mm256_mul_ps(_mm256_and_ps(far, some), weight);
    _mm256_storeu_ps(out + d, _mm256_fmadd_ps(near, _mm256_loadu_ps(x.near + d), part));
  }
}
#endif

// A row of an image upsampled along x. `line` has kLanes + 1 elements more than the row.
template <Isa isa, class T>
SOLO_ATTN_INLINE void expand(const T* line, const Axis<T>& x, T* out) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<T, float> && isa != Isa::plain) {
    if (x.in <= x.out) {
      if constexpr (isa == Isa::avx512) return expand_avx512(line, x, out);
      return expand_avx2(line, x, out);
    }
  }
#endif
  for (int64_t d = 0; d < x.out; ++d) {
    const T* from = line + x.low[d];
    const T far = x.far[d] == 0 ? T(0) : from[1];
    out[d] = from[0] * x.near[d] + far * x.far[d];
  }
}

// The rows of one image upsampled along x; the last two that were requested are kept.
template <class S, class T>
struct Expanded {
  const S* image;
  Axis<T> x;
  T* memory;  // expanded_room(x) of it
  int64_t held[2] = {-1, -1};

  template <Isa isa>
  SOLO_ATTN_INLINE const T* row(int64_t i) {
    T* out = memory + (i & 1) * padded(x.out);
    if (held[i & 1] != i) {
      T* line = memory + 2 * padded(x.out);
      widen<isa>(image + i * x.in, x.in, line);
      for (int64_t k = 0; k <= kLanes; ++k) line[x.in + k] = line[x.in - 1];
      expand<isa>(line, x, out);
      held[i & 1] = i;
    }
    return out;
  }
};

template <class T>
int64_t expanded_room(const Axis<T>& x) {
  return 2 * padded(x.out) + padded(x.in + kLanes + 1);
}

// The two expanded rows that one output row lies between, and their weights.
template <class T>
struct Between {
  const T* low;
  const T* high;
  T near;
  T far;

  SOLO_ATTN_INLINE T operator[](int64_t d) const { return near * low[d] + far * high[d]; }
};

template <Isa isa, class S, class T>
SOLO_ATTN_INLINE Between<T> between(Expanded<S, T>& rows, const Axis<T>& y, int64_t d) {
  const T* first = rows.template row<isa>(y.low[d]);
  if (y.far[d] == 0) return {first, first, T(0.5), T(0.5)};
  return {first, rows.template row<isa>(y.low[d] + 1), y.near[d], y.far[d]};
}

#if defined(SOLO_ATTN_X86)
SOLO_ATTN_AVX512 inline float dot_avx512(const float* a, const float* b, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 some = count - k < 16 ? (1u << (count - k)) - 1 : 0xffff;
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, a + k), _mm512_maskz_loadu_ps(some, b + k), sum);
  }
  const __m256 eight =
      _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, sum, 0), _mm512_maskz_extractf32x8_ps(0xff, sum, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#endif

template <Isa isa, class T>
SOLO_ATTN_INLINE T dot(const T* a, const T* b, int64_t count) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<T, float> && isa == Isa::avx512) return dot_avx512(a, b, count);
#endif
  T lanes[8] = {};
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    for (int64_t l = 0; l < 8; ++l) lanes[l] += a[k + l] * b[k + l];
  }
  T sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  for (; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

// The adjoint of the upsampling: an image [y.out, x.out] to [y.in, x.in]. `row` has x.out elements.
template <Isa isa, class T>
SOLO_ATTN_INLINE void gather(const T* grad, const Parts<T>& y, const Parts<T>& x, T* row, T* out) {
  for (int64_t i = 0; i < y.in; ++i) {
    const T* weight = y.weight + y.place[i];
    const T* from = grad + y.begin[i] * x.out;
    int64_t k = 0;
    // Pairs of rows, so that the sums are loaded and stored half as often.
    if (y.count[i] % 2 == 1) {
      SOLO_ATTN_INDEPENDENT
      for (int64_t d = 0; d < x.out; ++d) row[d] = weight[0] * from[d];
      k = 1;
    } else {
      for (int64_t d = 0; d < x.out; ++d) row[d] = 0;
    }
    for (; k < y.count[i]; k += 2) {
      const T *a = from + k * x.out, *b = a + x.out;
      const T wa = weight[k], wb = weight[k + 1];
      SOLO_ATTN_INDEPENDENT
      for (int64_t d = 0; d < x.out; ++d) row[d] += wa * a[d] + wb * b[d];
    }
    for (int64_t j = 0; j < x.in; ++j) {
      out[i * x.in + j] = dot<isa>(x.weight + x.place[j], row + x.begin[j], x.count[j]);
    }
  }
}

}  // namespace solo_attn
