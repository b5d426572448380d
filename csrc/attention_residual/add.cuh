// The forward pass of attention_residual: see attention_residual_cuda.cu for what bounds it.
#pragma once

#include <algorithm>

#include "../common/access.h"
#include "../common/bilinear.h"
#include "../grid_attention/dots.cuh"
#include "attention_residual.h"

namespace solo_attn::attention_residual {

using grid_attention::Dots;
using grid_attention::kBlocksAnSm;
using grid_attention::kThreads;
using grid_attention::Vectors;

constexpr int kGroup = 32;                 // cells of a block
constexpr int kTileWidth = 1024;           // columns of pixels of a block, at most
constexpr int kTapRows = 64;               // rows of pixels whose taps are in shared memory at a time
constexpr int kAhead = 8;                  // rows that a thread has on their way
constexpr size_t kSharedLimit = 95 << 10;  // dynamic; with 4 KB of Dots, the 99 KB a block has on 8.6

// How the work is cut: a block takes a group of cells, a band of the grid's rows and a tile of columns.
struct AddPlan {
  int64_t groups;
  int64_t bands;
  int64_t tiles;
  int tile;       // columns of pixels
  int span;       // columns of the grid, all of them or as many as a tile has taps in
  int rows;       // of the grid, that are computed at a time; one more is kept from before
  int intervals;  // between rows of the grid, of a band: pixels between row i and i + 1 belong to interval i
  int stride;     // of a cell's dot products in shared memory

  // `most`: columns of the grid that shared memory has room for, in a row and the one before.
  AddPlan(const Sizes& size, int columns_at_a_time, int most) {
    const int side = static_cast<int>(size.side);
    const bool whole = side <= most;
    // Pixels that are `apart` have taps in apart * side / width + 3 columns.
    const int64_t apart = (most - 3) * size.width / side;
    tile = static_cast<int>(whole ? kTileWidth : std::min<int64_t>(kTileWidth, 1 + apart));
    span = whole ? side : static_cast<int>(std::min(size.side, (tile - 1) * size.side / size.width + 3));
    rows = whole ? std::max(1, (columns_at_a_time - 3) / side) : 1;
    groups = ceil_div<int64_t>(size.cells(), kGroup);
    tiles = ceil_div<int64_t>(size.width, tile);
    // Two steps of rows at least, for a band's first row is computed by the band above as well. 1,024 blocks
    // are two waves of four blocks for each of an H200's multiprocessors.
    const int64_t wanted = ceil_div<int64_t>(1024, std::max<int64_t>(1, size.batch * groups * tiles));
    intervals = static_cast<int>(std::max<int64_t>(2 * rows - 1, ceil_div<int64_t>(side, wanted)));
    bands = ceil_div<int64_t>(side, intervals);
    stride = (rows + 1) * span;
    stride += (40 - stride % 32) % 32;  // 8 banks from cell to cell
  }
  int64_t blocks(const Sizes& size) const { return size.batch * groups * bands * tiles; }
};

// Of a row of pixels: where its rows of the grid begin in a cell's ring, and the weight of the second.
template <class T>
struct RowTap {
  int low;
  int high;
  T weight;
};

template <class S, int kWidth>
struct alignas(16) AddShared {
  using T = accumulator_t<S>;
  typename Ahead<S, kWidth, kAhead, kThreads>::Places places;
  T weight[kTileWidth];
  uint32_t columns[kTileWidth];  // of the grid, low and high, 16 bits each
  RowTap<T> y[kTapRows];
  int cells[kGroup];
};

// Columns of which two rows fit, each cell's rounded up by 31 at most; few for the shim, whose grids are
// small.
template <class S>
constexpr int kMostColumns =
    kPlayed ? 24
            : static_cast<int>(
                  ((kSharedLimit - sizeof(AddShared<S, kPer16Bytes<S>>)) / kGroup / sizeof(accumulator_t<S>) -
                   31) /
                  2);

template <class S, int kWidth>
size_t add_shared_bytes(const AddPlan& plan) {
  return sizeof(AddShared<S, kWidth>) + kGroup * plan.stride * sizeof(accumulator_t<S>);
}

// A row of the grid enlarged along x, for kWidth columns of pixels from x on. Their taps are read again for
// each row of the grid, for which registers are too few.
template <class S, int kWidth, class T>
__device__ __forceinline__ void enlarge(const AddShared<S, kWidth>& shared, int x, const T* row,
                                        T (&out)[kWidth]) {
  const auto columns = load<uint32_t, kWidth>(shared.columns + x);
  const auto weight = load<T, kWidth>(shared.weight + x);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const T left = row[columns.at[k] & 0xffff], right = row[columns.at[k] >> 16];
    out[k] = left + weight.at[k] * (right - left);
  }
}

// Adds to `count` rows of pixels, whose taps are in `shared`; logits and out begin at the first row's first
// pixel of the block's first cell. A thread walks down kWidth columns of a cell: a row of the grid is
// enlarged along x when the pixels reach it, not for each pixel.
template <class S, int kWidth, class T>
__device__ __forceinline__ void add_rows(const S* logits, S* out, const Sizes& size, const AddPlan& plan,
                                         AddShared<S, kWidth>& shared, const T* ring, int some_cells,
                                         int columns, int count) {
  const int width = static_cast<int>(size.width), runs = columns / kWidth;
  using Rows = Ahead<S, kWidth, kAhead, kThreads>;
  for (int item = threadIdx.x; item < some_cells * runs; item += kThreads) {
    const int cell = item / runs, x = item % runs * kWidth;
    const T* maps = ring + cell * plan.stride;
    const S* from = logits + cell * size.pixels() + x;
    S* to = out + cell * size.pixels() + x;
    Rows rows(shared.places);
#pragma unroll
    for (int k = 0; k < kAhead; ++k, from += width) rows.ask(k, from, k < count);
    int low = -1, high = -1;
    T upper[kWidth], lower[kWidth];
    for (int first = 0; first < count; first += Rows::kUnroll) {
#pragma unroll
      for (int u = 0; u < Rows::kUnroll; ++u, from += width, to += width) {
        const int k = first + u, slot = Rows::kAsync ? k : u;
        if (k >= count) break;
        const RowTap<T> tap = shared.y[k];
        if (tap.low != low) {
          if (tap.low == high) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) upper[j] = lower[j];
          } else {
            enlarge(shared, x, maps + tap.low, upper);
          }
          enlarge(shared, x, maps + tap.high, lower);
          low = tap.low;
          high = tap.high;
        }
        auto pixels = rows.take(slot);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const T large = upper[j] + tap.weight * (lower[j] - upper[j]);
          pixels.at[j] = static_cast<S>(static_cast<T>(pixels.at[j]) + large);
        }
        store_once(to, pixels);
        rows.ask(slot, from, k + kAhead < count);
      }
    }
  }
}

// Narrow or unaligned, a thread needs some registers more; such maps are small. Before 9.0 shared memory has
// no room for four.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kMostBlocks = 3;
#else
constexpr int kMostBlocks = 4;
#endif
template <class S, int kWidth, bool kAligned>
constexpr int kAddBlocks = std::min(kBlocksAnSm<S>, kAligned&& kWidth == kPer16Bytes<S> ? kMostBlocks : 3);

// out = logits + the enlarged map; they may be one tensor. kWidth pixels by one instruction.
template <class S, int kWidth, bool kAligned>
__global__ void __launch_bounds__(kThreads, (kAddBlocks<S, kWidth, kAligned>))
    attention_residual_fwd_kernel(const S* logits, S* out, Vectors<S> vectors, Sizes size, AddPlan plan,
                                  accumulator_t<S> scale) {
  using T = accumulator_t<S>;
  using Tile = Dots<S, kGroup, kAligned>;
  using Shared = AddShared<S, kWidth>;
  SOLO_ATTN_DYNAMIC_SHARED(Shared, shared_memory);
  Shared& shared = *shared_memory;
  T* ring = reinterpret_cast<T*>(shared_memory + 1);
  const int side = static_cast<int>(size.side), cells = vectors.cells;
  int64_t index = blockIdx.x;
  const int x0 = static_cast<int>(index % plan.tiles) * plan.tile;
  const int columns = min(plan.tile, static_cast<int>(size.width) - x0);
  const int64_t band = (index /= plan.tiles) % plan.bands;
  const int n0 = static_cast<int>((index /= plan.bands) % plan.groups) * kGroup;
  const int64_t b = index / plan.groups;

  const int begin = static_cast<int>(band) * plan.intervals, end = min(begin + plan.intervals, side);
  int64_t d = bilinear_first(begin, size.side, size.height);
  const int64_t stop = end == side ? size.height : bilinear_first(end, size.side, size.height);
  if (d == stop) return;
  logits += size.logits(b, n0) + d * size.width + x0;
  out += size.logits(b, n0) + d * size.width + x0;

  if (threadIdx.x < kGroup) shared.cells[threadIdx.x] = min(n0 + static_cast<int>(threadIdx.x), cells - 1);
  // The columns of the grid begin at `left`. Wide reads are for grids whose rows fit: registers are few.
  constexpr bool kWhole = kWidth > 1;
  const int span = kWhole ? side : plan.span;
  const int left =
      kWhole ? 0 : static_cast<int>(min(bilinear_tap<T>(x0, size.side, size.width).low, size.side - span));
  for (int x = threadIdx.x; x < columns; x += kThreads) {
    const auto tap = bilinear_tap<T>(x0 + x, size.side, size.width);
    shared.columns[x] = static_cast<uint32_t>((tap.low - left) | (tap.high - left) << 16);
    shared.weight[x] = tap.weight;
  }
  __syncthreads();

  const int last = min(end, side - 1);  // row of the grid
  for (int row = begin; d < stop; row += plan.rows) {
    const int ready = min(row + plan.rows - 1, last);
    // All rows from their first column to their last, or one from column `left` on.
    const int from = row * side + left, to = ready * side + left + span;
    const int begin_of_ring = row % (plan.rows + 1) * span, room = (plan.rows + 1) * span;
    for (int first = from & ~3; first < to; first += Tile::kColumns) {
      Tile tile;
      tile.run(vectors, b, shared.cells, first);
      tile.each([&](int cell, int column, T value) {
        const int n = first + column - from;
        if (n < 0 || n >= to - from) return;
        const int place = begin_of_ring + n;
        ring[cell * plan.stride + (place < room ? place : place - room)] = scale * value;
      });
    }
    const int64_t until = ready == last ? stop : bilinear_first(ready, size.side, size.height);
    while (d < until) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kTapRows), until - d));
      if (static_cast<int>(threadIdx.x) < count) {
        const auto tap = bilinear_tap<T>(d + threadIdx.x, size.side, size.height);
        const int lines = plan.rows + 1;
        shared.y[threadIdx.x] = {static_cast<int>(tap.low) % lines * span,
                                 static_cast<int>(tap.high) % lines * span, tap.weight};
      }
      __syncthreads();
      add_rows(logits, out, size, plan, shared, ring, min(kGroup, cells - n0), columns, count);
      __syncthreads();
      d += count;
      logits += count * size.width;
      out += count * size.width;
    }
  }
}

}  // namespace solo_attn::attention_residual
