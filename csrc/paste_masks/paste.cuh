// Maps at stride 4 to the original image, by a walk down of its own (docs/method.md, "Inference" step 9).
//
// Two enlargements, to the padded input and to the original image, are one: a pixel's taps in the padded
// input have three taps in the map between them, in each axis. A row of the map is enlarged along x, once,
// into registers, when the walk reaches it; a pixel is two multiply-adds of the three rows around it.
#pragma once

#include "../common/access.h"
#include "../common/walk.cuh"

namespace solo_attn::paste_masks {

constexpr int kPasteThreads = 128;
constexpr int kPasteRows = 64;  // of a band, at most
// Of a thread, whose three rows take 48 registers, and blocks that an SM holds.
template <class T>
constexpr int kPasteColumns = 64 / static_cast<int>(sizeof(T));
constexpr int kPasteBlocks = 3;

// One axis: a map to four times its size, of which `image.in` are cropped and enlarged.
struct PasteAxis {
  TapAxis padded;
  TapAxis image;

  static PasteAxis of(int64_t map, int64_t image, int64_t original) {
    return {TapAxis::of(map, 4 * map), TapAxis::of(image, original)};
  }
};

// m0 + second (m1 - m0) + third (m2 - m0), of the three inputs from `first` on; exact where they are equal.
// Inputs whose weight is 0 are left out: they may be NaN, or not be there.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) PasteTap {
  T second;
  T third;
  int first;
};

template <class T>
__device__ __forceinline__ PasteTap<T> paste_tap(const PasteAxis& axis, int d) {
  const auto pixel = axis_tap<T>(axis.image, d);
  const auto low = axis_tap<T>(axis.padded, pixel.low);
  const auto high = axis_tap<T>(axis.padded, min(pixel.low + 1, axis.image.in - 1));
  const T second = (1 - pixel.weight) * low.weight;
  if (high.low == low.low) return {second + pixel.weight * high.weight, T(0), low.low};
  return {second + pixel.weight * (1 - high.weight), pixel.weight * high.weight, low.low};
}

// Where a thread's columns have their taps; no other thread reads them.
template <class T>
struct PasteColumns {
  PasteTap<T> at[kPasteColumns<T>][kPasteThreads];
};

// The three rows of a map that a thread's pixels lie between, enlarged along x.
template <class T>
class PastedRows {
 public:
  __device__ __forceinline__ PastedRows(const T* map, int height, int width, const PasteColumns<T>& taps)
      : map_(map), taps_(taps), width_(static_cast<uint32_t>(width)), last_(height - 1), at_(-4) {
#pragma unroll
    for (int j = 0; j < kPasteColumns<T>; ++j) rows_[1][j] = rows_[2][j] = 0;
    most_[1] = most_[2] = 0;
  }
  // Rows are asked for from top to bottom.
  __device__ __forceinline__ void reach(int first) {
#pragma unroll 1
    for (int next = max(first, at_ + 3); next <= first + 2; ++next) {
#pragma unroll
      for (int j = 0; j < kPasteColumns<T>; ++j) {
        rows_[0][j] = rows_[1][j];
        rows_[1][j] = rows_[2][j];
      }
      most_[0] = most_[1];
      most_[1] = most_[2];
      read(min(max(next, 0), last_));
    }
    at_ = first;
  }
  // Bit j: whether column j is above the threshold in the row of `tap`.
  __device__ __forceinline__ uint32_t above(const PasteTap<T>& tap, T threshold) const {
    uint32_t bits = 0;
    const bool three = tap.third > 0;
    // No pixel is above what it lies between. Most of most masks is empty.
    if (!(max(most_[0], max(most_[1], most_[2])) > threshold)) return bits;
#pragma unroll
    for (int j = 0; j < kPasteColumns<T>; ++j) {
      const T first = rows_[0][j];
      T p = first + tap.second * (rows_[1][j] - first);
      if (three) p += tap.third * (rows_[2][j] - first);
      bits |= (p > threshold ? 1u : 0u) << j;
    }
    return bits;
  }

 private:
  __device__ __forceinline__ void read(int row) {
    const T* from = opaque(map_ + static_cast<uint64_t>(static_cast<uint32_t>(row)) * width_);
    most_[2] = 0;
#pragma unroll
    for (int j = 0; j < kPasteColumns<T>; ++j) {
      const PasteTap<T> tap = taps_.at[j][threadIdx.x];
      const T* at = from + static_cast<uint32_t>(tap.first);
      const T first = at[0];
      T value = first;
      if (tap.second > 0) value += tap.second * (at[1] - first);
      if (tap.third > 0) value += tap.third * (at[2] - first);
      rows_[2][j] = value;
      most_[2] = max(most_[2], value);  // leaves NaN out
    }
  }

  const T* map_;
  const PasteColumns<T>& taps_;
  uint32_t width_;
  int last_, at_;
  T most_[3];  // of each row
  T rows_[3][kPasteColumns<T>];
};

// Maps [count, height, width], one after the other.
template <class T>
struct PasteMaps {
  const T* data;
  PasteAxis y;
  PasteAxis x;
};

// Calls row(y, bits) for each row of the block's band of the original image.
template <class T, class F>
__device__ __forceinline__ void walk_pasted(const PasteMaps<T>& maps, const WalkPlace& place, T threshold,
                                            PasteColumns<T>& columns, PasteTap<T>* taps, const F& row) {
  for (int k = threadIdx.x; k < place.end - place.begin; k += blockDim.x) {
    taps[k] = paste_tap<T>(maps.y, place.begin + k);
    // Before the first row lies itself once more, so that the second one has no part of 0.
    if (taps[k].first == 0 && taps[k].second == 0) {
      taps[k].first = -1;
      taps[k].second = 1;
    }
  }
#pragma unroll 1
  for (int j = 0; j < kPasteColumns<T>; ++j) {
    columns.at[j][threadIdx.x] = paste_tap<T>(maps.x, min(place.x + j, maps.x.image.out - 1));
  }
  __syncthreads();
  const int height = maps.y.padded.in, width = maps.x.padded.in;
  PastedRows<T> rows(maps.data + place.cell * height * width, height, width, columns);
#pragma unroll 1
  for (int y = place.begin; y < place.end; ++y) {
    const PasteTap<T> tap = taps[y - place.begin];
    rows.reach(tap.first);
    row(y, rows.above(tap, threshold));
  }
}

// Of the image's rows, bands of a multiple of `step` of them.
template <class T>
WalkPlan paste_plan(int64_t count, int64_t height, int64_t width, int64_t step) {
  return WalkPlan(count, height, width, kPasteColumns<T>, step, kPasteRows, kPasteThreads);
}

}  // namespace solo_attn::paste_masks
