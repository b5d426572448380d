// The adjoint of the enlargement: the gradient of the S x S maps, by gathering.
#pragma once

#include <algorithm>

#include "../common/access.h"
#include "../common/bilinear.h"
#include "../grid_attention/dots.cuh"
#include "attention_residual.h"

namespace solo_attn::attention_residual {

using grid_attention::kThreads;

constexpr int kGatherWidth = 1024;  // columns of pixels at a time
constexpr int kGatherRows = 4;      // rows of the grid at a time
constexpr int kGatherTaps = 64;     // rows of pixels whose weights are in shared memory at a time
constexpr int kGatherAhead = 8;     // rows of pixels that a thread has on their way

// Where column x of a line lies: neighbouring lanes read inputs 8 (or 4, or 16) pixels apart, and so no bank
// twice.
SOLO_ATTN_HOST_DEVICE inline int skewed(int x) { return x + (x >> 5); }

struct GatherPlan {
  int cells;   // of a block
  int rows;    // of the grid at a time: so many lines of a cell, and one for the row that is begun
  int stride;  // of a line

  int lines() const { return cells * (rows + 1); }
};

// As many cells, to eight, as leave the fewest threads idle: three at a width of 336.
template <class T>
GatherPlan gather_plan(const Sizes& size, int width) {
  const int columns = static_cast<int>(std::min<int64_t>(kGatherWidth, size.width));
  GatherPlan best{1, static_cast<int>(std::min<int64_t>(kGatherRows, size.side)), skewed(columns) + 1};
  const auto busy = [&](int cells) {
    const int items = cells * (columns / width);
    return static_cast<double>(items) / (ceil_div(items, kThreads) * kThreads);
  };
  for (int cells = 2; cells <= 8; ++cells) {
    if (cells * (best.rows + 1) * best.stride * sizeof(T) > 32 << 10) break;
    if (busy(cells) > busy(best.cells)) best.cells = cells;
  }
  return best;
}

template <class T>
size_t gather_shared_bytes(const GatherPlan& plan, const Sizes& size) {
  return (plan.lines() + 1) * plan.stride * sizeof(T) + (size.side + 2) * sizeof(int);
}

template <class T>
struct GatherTap {
  int low;  // row of the grid
  T weight;
};

// Adds `count` rows of pixels to the lines. A thread walks down kWidth columns of one cell and adds each
// pixel to the row of the grid above it and to the one below; a row that no more pixels reach becomes a line.
// `begun` is the line that the rows before stopped at, -1 if these are the first; after the last (`ends`) all
// lines are there.
template <class S, int kWidth, class Rows, class T>
__device__ __forceinline__ void gather_down(const S* grad, const Sizes& size, const GatherPlan& plan,
                                            typename Rows::Places& places, const GatherTap<T>* taps,
                                            int count, int some_cells, int columns, int row, int begun,
                                            bool ends, T* lines) {
  const int width = static_cast<int>(size.width), runs = columns / kWidth;
  for (int item = threadIdx.x; item < some_cells * runs; item += kThreads) {
    const int cell = item / runs, x = item % runs * kWidth;
    T* line = lines + cell * (plan.rows + 1) * plan.stride;
    T upper[kWidth], lower[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) upper[j] = lower[j] = 0;
    int at = max(begun, 0);
    // Added to what is there: short sums keep their precision, however many pixels there are.
    const auto put = [&](int to, const T(&sum)[kWidth]) {
      const bool here = begun >= 0 && to <= begun + 1, before = begun < 0 && to == 0 && row > 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        T& place = line[to * plan.stride + skewed(x + j)];
        // The last line of the step before is the first of this one.
        place = (here ? place : before ? line[plan.rows * plan.stride + skewed(x + j)] : T(0)) + sum[j];
      }
    };
    const auto advance = [&] {
      put(at++, upper);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        upper[j] = lower[j];
        lower[j] = 0;
      }
    };
    const S* from = grad + cell * size.pixels() + x;
    Rows pixels(places);
#pragma unroll
    for (int k = 0; k < kGatherAhead; ++k, from += width) pixels.ask(k, from, k < count);
    for (int first = 0; first < count; first += Rows::kUnroll) {
#pragma unroll
      for (int u = 0; u < Rows::kUnroll; ++u, from += width) {
        const int k = first + u, slot = Rows::kAsync ? k : u;
        if (k >= count) break;
        const GatherTap<T> tap = taps[k];
        while (at < tap.low - row) advance();
        const auto run = pixels.take(slot);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const T pixel = static_cast<T>(run.at[j]);
          upper[j] += (1 - tap.weight) * pixel;
          lower[j] += tap.weight * pixel;
        }
        pixels.ask(slot, from, k + kGatherAhead < count);
      }
    }
    while (ends && at < plan.rows) advance();
    put(at, upper);
    if (!ends) put(at + 1, lower);
  }
}

// maps [B, N, S, S] = the transpose of the enlargement, of grad [B, N, H, W]: four rows of the grid at a time
// down the pixels, then, a thread for each input, along them. Each sum is added in one order.
template <class S, int kWidth>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 3 : 5)
    gather_kernel(const S* grad, Sizes size, GatherPlan plan, accumulator_t<S>* maps) {
  using T = accumulator_t<S>;
  SOLO_ATTN_DYNAMIC_SHARED(T, lines);  // [cells][rows + 1][stride]
  using Rows = Ahead<S, kWidth, kGatherAhead, kThreads>;
  SOLO_ATTN_SHARED(places, typename Rows::Places);
  SOLO_ATTN_SHARED(taps, GatherTap<T>[kGatherTaps]);
  T* weights = lines + plan.cells * (plan.rows + 1) * plan.stride;
  int* starts = reinterpret_cast<int*>(weights + plan.stride);  // of inputs -1 to S, in columns
  const int side = static_cast<int>(size.side);
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * plan.cells;
  const int some = static_cast<int>(min(static_cast<int64_t>(plan.cells), size.batch * size.cells() - n0));
  grad += n0 * size.pixels();
  maps += n0 * size.cells();

  for (int64_t x0 = 0; x0 < size.width; x0 += kGatherWidth) {
    const int columns = static_cast<int>(min(static_cast<int64_t>(kGatherWidth), size.width - x0));
    for (int x = threadIdx.x; x < columns; x += kThreads) {
      weights[skewed(x)] = bilinear_tap<T>(x0 + x, size.side, size.width).weight;
    }
    for (int j = threadIdx.x; j < side + 2; j += kThreads) {
      const int64_t start = bilinear_first(j - 1, size.side, size.width) - x0;
      starts[j] = static_cast<int>(max(int64_t(0), min(start, static_cast<int64_t>(columns))));
    }
    for (int row = 0; row < side; row += plan.rows) {
      const int64_t end = bilinear_first(min(row + plan.rows, side), size.side, size.height);
      int64_t d = bilinear_first(row, size.side, size.height);
      int begun = -1;
      do {  // once, unless the grid is enlarged more than sixteen times; also where it is reduced
        const int count = static_cast<int>(min(static_cast<int64_t>(kGatherTaps), end - d));
        if (static_cast<int>(threadIdx.x) < count) {
          const auto tap = bilinear_tap<T>(d + threadIdx.x, size.side, size.height);
          taps[threadIdx.x] = {static_cast<int>(tap.low), tap.weight};
        }
        __syncthreads();
        gather_down<S, kWidth, Rows>(grad + d * size.width + x0, size, plan, places, taps, count, some,
                                     columns, row, begun, d + count == end, lines);
        if (count > 0) begun = taps[count - 1].low - row;
        d += count;
        __syncthreads();
      } while (d < end);
      const int rows = min(plan.rows, side - row);
      for (int e = threadIdx.x; e < some * rows * side; e += kThreads) {
        const int cell = e / (rows * side), rest = e % (rows * side), j = rest % side;
        const T* line = lines + (cell * (plan.rows + 1) + rest / side) * plan.stride;
        T sum = 0, part = 0;
        for (int x = starts[j]; x < starts[j + 2]; ++x) {
          const T weight = weights[skewed(x)];
          part += (x < starts[j + 1] ? weight : 1 - weight) * line[skewed(x)];
          if (x % kWarp == kWarp - 1) sum += part, part = 0;
        }
        sum += part;
        T& to = maps[cell * size.cells() + row * side + rest];
        to = x0 == 0 ? sum : to + sum;
      }
      __syncthreads();
    }
  }
}

}  // namespace solo_attn::attention_residual
