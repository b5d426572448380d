// Bilinear enlarging row by row: no enlarged map is kept, only the two of its rows that are blended next.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "bilinear.h"
#include "check.h"
#include "sigmoid.h"
#include "simd.h"

namespace solo_attn {

// The taps of one axis, as tables that vector loops read. Where a sample falls on an input, that input is
// both taps, so that a NaN beside it stays out.
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
  TapTable(int64_t in, int64_t out) : in_(in), low_(out), high_(out), weight_(out) {
    check(in <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 rows and columns, got ", in);
    for (int64_t d = 0; d < out; ++d) {
      const Tap<T> tap = bilinear_tap<T>(d, in, out);
      low_[d] = static_cast<int32_t>(tap.low);
      high_[d] = static_cast<int32_t>(tap.weight == 0 ? tap.low : tap.high);
      weight_[d] = tap.weight;
    }
  }
  Taps<T> view() const {
    return {low_.data(), high_.data(), weight_.data(), in_, static_cast<int64_t>(low_.size())};
  }

 private:
  int64_t in_;
  std::vector<int32_t> low_, high_;
  std::vector<T> weight_;
};

// Both exactly a where a = b and the sum of the two weights rounds to 1, which it always does. `mix` also
// keeps an infinity that both taps have; `lerp` is an operation less, for probabilities.
template <class T>
SOLO_ATTN_INLINE T mix(T a, T b, T weight) {
  return (1 - weight) * a + weight * b;
}
template <class T>
SOLO_ATTN_INLINE T lerp(T a, T b, T weight) {
  return a + weight * (b - a);
}

// A map of which two rows are held, enlarged in x, in columns [begin, end) of the result. Rows are asked for
// from top to bottom, so each is enlarged once.
template <class S, class T>
struct RowPair {
  const S* map;  // nullptr: there is none, and it counts as 0
  Taps<T> rows;
  Taps<T> columns;
  T* store;  // size(): one row as T, then the two
  int64_t begin;
  int64_t end;
  int64_t held[2];

  static int64_t size(int64_t in, int64_t out) { return in + 2 * out; }

  static RowPair over(const S* map, Taps<T> rows, Taps<T> columns, T* store) {
    return {map, rows, columns, store, 0, columns.out, {-1, -1}};
  }

  SOLO_ATTN_INLINE const T* row(int64_t i) {
    T* __restrict out = store + columns.in + (i & 1) * columns.out;
    if (held[i & 1] == i) return out;
    held[i & 1] = i;
    T* __restrict wide = store;
    const S* __restrict from = map + i * columns.in;
    for (int64_t x = 0; x < columns.in; ++x) wide[x] = static_cast<T>(from[x]);
    const int32_t* __restrict low = columns.low;
    const int32_t* __restrict high = columns.high;
    const T* __restrict weight = columns.weight;
    for (int64_t x = begin; x < end; ++x) out[x] = mix(wide[low[x]], wide[high[x]], weight[x]);
    return out;
  }
};

// sigmoid(up(coarse) + up(attention)) of output row y, in the columns of `coarse`.
template <class S, class T>
SOLO_ATTN_INLINE void probability_row(RowPair<S, T>& coarse, RowPair<S, T>& attention, int64_t y,
                                      T* __restrict out) {
  const T* __restrict above = coarse.row(coarse.rows.low[y]);
  const T* __restrict below = coarse.row(coarse.rows.high[y]);
  const T weight = coarse.rows.weight[y];
  const int64_t end = coarse.end;
  if (attention.map == nullptr) {
    for (int64_t x = coarse.begin; x < end; ++x) out[x] = sigmoid(mix(above[x], below[x], weight));
    return;
  }
  const T* __restrict upper = attention.row(attention.rows.low[y]);
  const T* __restrict lower = attention.row(attention.rows.high[y]);
  const T other = attention.rows.weight[y];
  for (int64_t x = coarse.begin; x < end; ++x) {
    out[x] = sigmoid(mix(above[x], below[x], weight) + mix(upper[x], lower[x], other));
  }
}

}  // namespace solo_attn
