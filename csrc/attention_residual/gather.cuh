// The adjoint of the enlargement: the gradient of the S x S maps, by gathering.
//
// S = 40, 168 x 336, one image: 361 MB of float32 are read, 84 us at an H200's 4.3 TB/s, and 10 MB written. A
// thread walks down the columns of 16 bytes of one cell, from the first row of pixels to the last, and has
// always six or eight rows on their way, also while the block sums along x what it has found.
#pragma once

#include <algorithm>

#include "../common/access.h"
#include "../common/bilinear.h"
#include "attention_residual.h"

namespace solo_attn::attention_residual {

constexpr int kGatherThreads = 256;
constexpr int kGatherRows = 4;   // rows of the map at a time
constexpr int kGatherTaps = 64;  // rows of pixels whose weights are in shared memory at a time

// Blocks that share a multiprocessor: all 534 of float32 are to run at once. Of half precision there are half
// as many, of twice the size.
template <class S>
constexpr int kGatherBlocks = sizeof(S) == 4 ? 5 : 3;
template <class S>
constexpr int kGatherAhead = sizeof(S) == 4 ? 6 : 8;  // rows of pixels that a thread has on their way

// Where column x of a line lies: neighbouring lanes read inputs 8 (or 4, or 16) pixels apart, and so no bank
// twice.
SOLO_ATTN_HOST_DEVICE inline int skewed(int x) { return x + (x >> 5); }

template <class T>
struct GatherPlan {
  int columns;  // of pixels, at a time
  int cells;    // of a block: as many as it has threads for the columns of
  int rows;     // of the map at a time: so many lines of a cell
  int stride;   // of a line
  TapAxis x;
  TapAxis y;

  GatherPlan(const Sizes& size, int width)
      : x(TapAxis::of(size.side, size.width)), y(TapAxis::of(size.side, size.height)) {
    columns = static_cast<int>(std::min<int64_t>(size.width, static_cast<int64_t>(kGatherThreads) * width));
    rows = static_cast<int>(std::min<int64_t>(kGatherRows, size.side));
    stride = skewed(columns) + 1;
    const int room = (32 << 10) / static_cast<int>(sizeof(T)) / (rows * stride);
    cells = std::max(1, std::min(kGatherThreads / (columns / width), room));
  }
  SOLO_ATTN_HOST_DEVICE int lines() const { return cells * rows; }
  size_t shared_bytes(const Sizes& size) const {
    return (lines() + 1) * stride * sizeof(T) + 2 * (size.side + 2) * sizeof(int);
  }
};

// What a thread has summed of its columns for two rows of the map: one that the pixels belong to now, and the
// next. `part` is of the last kGatherTaps rows of pixels, so that sums keep their precision however many
// there are.
template <int kWidth, class T>
struct GatherSums {
  T upper[kWidth], upper_part[kWidth], lower[kWidth], lower_part[kWidth];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) upper[j] = upper_part[j] = lower[j] = lower_part[j] = 0;
  }
  template <class S>
  __device__ __forceinline__ void add(const Run<S, kWidth>& pixels, T weight) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const T pixel = static_cast<T>(pixels.at[j]);
      upper_part[j] += (1 - weight) * pixel;
      if (weight > 0) lower_part[j] += weight * pixel;
    }
  }
  __device__ __forceinline__ void close_part() {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      upper[j] += upper_part[j];
      lower[j] += lower_part[j];
      upper_part[j] = lower_part[j] = 0;
    }
  }
  // Writes the finished row, and goes on with the next.
  __device__ __forceinline__ void advance(T* line, int x) {
    close_part();
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      line[skewed(x + j)] = upper[j];
      upper[j] = lower[j];
      lower[j] = 0;
    }
  }
};

// maps [cells, S, S] = the transpose of the enlargement, of grad [cells, H, W]: four rows of the map at a
// time down the pixels, then, a thread for each input, along them. Each sum is added in one order.
template <class S, int kWidth>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks<S>)
    attention_residual_gather_kernel(const S* grad, Sizes size, GatherPlan<accumulator_t<S>> plan,
                                     accumulator_t<S>* maps) {
  using T = accumulator_t<S>;
  constexpr int kAhead = kGatherAhead<S>;
  using Rows = Ahead<S, kWidth, kAhead, kGatherThreads>;
  SOLO_ATTN_DYNAMIC_SHARED(T, lines);  // [cells][rows][stride]
  SOLO_ATTN_SHARED(places, typename Rows::Places);
  SOLO_ATTN_SHARED(taps, AxisTap<T>[kGatherTaps]);
  T* weights = lines + plan.lines() * plan.stride;
  const int side = static_cast<int>(size.side);
  int* starts = reinterpret_cast<int*>(weights + plan.stride);  // of inputs -1 to S, in columns
  int* begins = starts + side + 2;                              // of inputs 0 to S, in rows
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * plan.cells;
  const int some = static_cast<int>(min(static_cast<int64_t>(plan.cells), size.batch * size.cells() - n0));
  maps += n0 * size.cells();

  for (int64_t x0 = 0; x0 < size.width; x0 += plan.columns) {
    const int columns = static_cast<int>(min(static_cast<int64_t>(plan.columns), size.width - x0));
    const int runs = columns / kWidth, cell = static_cast<int>(threadIdx.x) / runs;
    const int x = static_cast<int>(threadIdx.x) % runs * kWidth;
    const bool mine = cell < some;
    const S* from = grad + (n0 + cell) * size.pixels() + x0 + x;
    Rows pixels(places);
    int slot = 0, left = mine ? static_cast<int>(size.height) : 0;  // rows that were not asked for yet
    const auto ask = [&] {
      pixels.ask(slot, from, left > 0);
      slot = slot == kAhead - 1 ? 0 : slot + 1;
      --left;
      from += size.width;
    };
#pragma unroll
    for (int k = 0; k < kAhead; ++k) ask();

    for (int e = threadIdx.x; e < columns; e += kGatherThreads) {
      weights[skewed(e)] = axis_tap<T>(plan.x, static_cast<int>(x0) + e).weight;
    }
    for (int j = threadIdx.x; j < side + 2; j += kGatherThreads) {
      const int64_t start = bilinear_first(j - 1, side, size.width) - x0;
      starts[j] = static_cast<int>(max(int64_t(0), min(start, static_cast<int64_t>(columns))));
      if (j <= side) begins[j] = static_cast<int>(bilinear_first(j, side, size.height));
    }
    __syncthreads();
    GatherSums<kWidth, T> sums;
    sums.clear();
    int d = 0;
    for (int row = 0; row < side; row += plan.rows) {
      const int rows = min(plan.rows, side - row);
      T* line = lines + cell * plan.rows * plan.stride;
      int at = row;  // the row of the map that the pixels belong to
      const int end = begins[row + rows];
      do {  // once, unless the map is enlarged more than sixteen times; also where it is reduced
        const int count = min(kGatherTaps, end - d);
        if (static_cast<int>(threadIdx.x) < count) {
          taps[threadIdx.x] = axis_tap<T>(plan.y, d + static_cast<int>(threadIdx.x));
        }
        __syncthreads();
        if (mine) {
          for (int k = 0; k < count; ++k) {
            const AxisTap<T> tap = taps[k];
            while (at < tap.low) sums.advance(line + (at++ - row) * plan.stride, x);
            sums.add(pixels.take(slot), tap.weight);
            ask();
          }
          sums.close_part();
          while (d + count == end && at < row + rows) sums.advance(line + (at++ - row) * plan.stride, x);
        }
        d += count;
        __syncthreads();
      } while (d < end);
      for (int e = threadIdx.x; e < some * rows * side; e += kGatherThreads) {
        const int n = e / (rows * side), rest = e % (rows * side), j = rest % side;
        const T* from_line = lines + (n * plan.rows + rest / side) * plan.stride;
        T sum = 0, part = 0;
        for (int k = starts[j]; k < starts[j + 2]; ++k) {
          const T weight = weights[skewed(k)], share = k < starts[j + 1] ? weight : 1 - weight;
          if (share > 0) part += share * from_line[skewed(k)];
          if (k % kWarp == kWarp - 1) sum += part, part = 0;
        }
        sum += part;
        T& to = maps[n * size.cells() + row * side + rest];
        to = x0 == 0 ? sum : to + sum;
      }
    }
    __syncthreads();
  }
}

}  // namespace solo_attn::attention_residual
