// Probability maps of chosen cells by the walk down (docs/method.md, "Inference" step 3): sigmoid at the
// level's own size, only then enlarged.
//
// Where the result is enlarged once more, a thread makes the probabilities that its columns have taps in, two
// for each column, when the walk reaches their row: twice as many columns on half as many rows, or on a
// quarter. So no more sigmoids are computed than there are pixels, and none is passed between threads.
#pragma once

#include <type_traits>

#include "ptx.h"
#include "walk.cuh"

namespace solo_attn {

// Exact where masks are decided, 1/2 at 0, and 0 far below it. NaN stays NaN.
__device__ __forceinline__ float logistic(float logit) {
  return fast_reciprocal(1 + fast_exp2(logit * -1.4426950408889634f));
}
__device__ __forceinline__ double logistic(double logit) { return 1 / (1 + exp(-logit)); }

// From the level's own size, which the maps are enlarged to, to that of the result. `same`: they are equal.
struct ProbabilityAxes {
  TapAxis y;
  TapAxis x;

  SOLO_ATTN_HOST_DEVICE bool same() const { return y.in == y.out && x.in == x.out; }
};

template <class S>
struct ProbabilityShared {
  using T = accumulator_t<S>;
  RowTaps<T> taps[kWalkRows];
  AxisTap<T> rows[kWalkRows];  // of the result's rows, in those of the level's size
};

template <class T>
__device__ __forceinline__ T between(T a, T b, T weight) {
  return a + weight * (b - a);  // exact where a = b, and probabilities are finite or NaN
}

// Calls row(y, p) for each row of the block, with the probabilities in a thread's columns.
template <bool kSame, int kColumns, class S, class F>
__device__ __forceinline__ void walk_probabilities(const CellMaps<S>& maps, const ProbabilityAxes& axes,
                                                   const WalkPlace& place, ProbabilityShared<S>& shared,
                                                   const F& row) {
  using T = accumulator_t<S>;
  if constexpr (kSame) {
    int columns[kColumns];
    own_columns(place.x, axes.x.out, columns);
    CellWalk<S, kColumns> cell(maps, place.cell, columns);
    walk_band(maps, shared.taps, place.begin, place.end - place.begin, [&](int y, const RowTaps<T>& taps) {
      T p[kColumns];
      cell.logits(taps, p);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) p[j] = logistic(p[j]);
      row(y, p);
    });
  } else {
    constexpr int kTaps = 2 * kColumns;
    int columns[kTaps];
    T weights[kColumns], upper[kColumns], lower[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const auto tap = axis_tap<T>(axes.x, min(place.x + j, axes.x.out - 1));
      columns[2 * j] = tap.low;
      columns[2 * j + 1] = tap.high();
      weights[j] = tap.weight;
      lower[j] = 0;
    }
    CellWalk<S, kTaps> cell(maps, place.cell, columns);
    // A barrier of the walk makes them known.
    for (int k = threadIdx.x; k < place.end - place.begin; k += blockDim.x) {
      shared.rows[k] = axis_tap<T>(axes.y, place.begin + k);
    }
    const int begin = axis_tap<T>(axes.y, place.begin).low;
    const int end = axis_tap<T>(axes.y, place.end - 1).high() + 1;
    int y = place.begin;
    walk_down(maps, shared.taps, begin, end, [&](int i, const RowTaps<T>& taps) {
      T p[kTaps];
      cell.logits(taps, p);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        upper[j] = lower[j];
        lower[j] = between(logistic(p[2 * j]), logistic(p[2 * j + 1]), weights[j]);
      }
      // The rows between these two, and those that fall on the lower one.
#pragma unroll 1
      for (; y < place.end; ++y) {
        const AxisTap<T> tap = shared.rows[y - place.begin];
        if (tap.high() > i) break;
        if (tap.low == i) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) upper[j] = lower[j];
        }
        T large[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) large[j] = between(upper[j], lower[j], tap.weight);
        row(y, large);
      }
    });
  }
}

// Of a thread, and blocks of 256 threads that an SM holds: the taps of four columns are eight, which need
// more registers, and of float64 twice as many.
template <class S, bool kSame>
constexpr int kProbabilityColumns = kSame || sizeof(S) < 8 ? 4 : 2;
template <class S, bool kSame>
constexpr int kProbabilityBlocks = kSame && sizeof(S) < 8 ? 3 : 1;

// f(std::true_type{}) where the result has the level's own size.
template <class F>
void with_same(const ProbabilityAxes& axes, const F& f) {
  if (axes.same()) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

}  // namespace solo_attn
