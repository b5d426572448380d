// The second half of attention_residual's forward pass: the maps, enlarged, are added to the logits.
//
// S = 40, 168 x 336, one image: 361 MB (float32; half of it in half precision) are read and written, 168 us
// at an H200's 4.3 TB/s, or 84. A thread walks down the columns of 16 bytes, four rows ahead in registers:
// four blocks of 256 threads have 64 KB on their way per SM, of which the bandwidth at 1 us of latency
// needs 17. A row of the map is enlarged along x when the walk reaches it, and costs two operations a pixel
// from then on. No barrier is in the loop, and the first logits are asked for before anything else.
#pragma once

#include <algorithm>

#include "../common/access.h"
#include "../common/bilinear.h"
#include "attention_residual.h"

namespace solo_attn::attention_residual {

constexpr int kStreamThreads = 256;
constexpr int kStreamTile = 1024;  // columns of pixels of a block, at most
constexpr int kStreamAhead = 4;    // rows of pixels that a thread has on their way
constexpr int kStreamRows = 32;    // that a thread walks down, at most
constexpr int kStreamTaps = 512;   // rows of a block, at most
// Bytes of the map in shared memory, else it is read where it lies; few for the shim, whose grids are small.
constexpr size_t kStreamMap = kPlayed ? 1 << 10 : 24 << 10;

// Blocks that share a multiprocessor. 64-bit addresses of maps that are read where they lie take registers.
template <class S, bool kKept>
constexpr int kStreamBlocks = (sizeof(S) == 4 ? 4 : 3) - (kKept ? 0 : 1);

// How one cell's pixels are cut: into tiles of columns, and parts of rows, each a band for every row of
// threads.
template <class T>
struct StreamPlan {
  int tiles;
  int parts;
  int tile;   // columns of pixels
  int bands;  // of a part
  int rows;   // of a band
  int lines;  // of the map, that the pixels of a part lie between, at most; 0: too many to be kept
  TapAxis x;
  TapAxis y;

  StreamPlan(const Sizes& size, int pixels_at_a_time)
      : x(TapAxis::of(size.side, size.width)), y(TapAxis::of(size.side, size.height)) {
    const int64_t most = std::min(kStreamTile, kStreamThreads * pixels_at_a_time);
    tiles = static_cast<int>(ceil_div(size.width, most));
    tile = static_cast<int>(ceil_div<int64_t>(ceil_div<int64_t>(size.width, tiles), pixels_at_a_time)) *
           pixels_at_a_time;
    bands = static_cast<int>(std::min<int64_t>(kStreamThreads / (tile / pixels_at_a_time), size.height));
    const int64_t room = std::min(kStreamRows, std::max(1, kStreamTaps / bands));
    parts = static_cast<int>(ceil_div(size.height, bands * room));
    rows = static_cast<int>(ceil_div(size.height, static_cast<int64_t>(bands) * parts));
    // Taps of rows that are `apart` are at most so far from each other, and two are read.
    const int64_t apart = (static_cast<int64_t>(bands) * rows - 1) * size.side / size.height + 3;
    const int64_t kept = std::min(size.side, apart);
    lines = kept * size.side * static_cast<int64_t>(sizeof(T)) <= static_cast<int64_t>(kStreamMap)
                ? static_cast<int>(kept)
                : 0;
  }
};

template <class T>
struct alignas(16) StreamShared {
  uint32_t columns[kStreamTile];  // of the map, low and high, 16 bits each; times kUnit
  T weights[kStreamTile];
  PairTap<T> y[kStreamTaps];  // rows of the map, from the block's first on
};

// Columns of a map in shared memory are counted in bytes, which saves the multiplication; of others 16 bits
// would not be enough for that.
template <class T, bool kKept>
constexpr int kUnit = kKept ? static_cast<int>(sizeof(T)) : 1;

// A row of the map enlarged along x, for kWidth columns of pixels from x on.
template <int kWidth, bool kKept, class T>
__device__ __forceinline__ void enlarge(const StreamShared<T>& shared, int x, const T* row,
                                        T (&out)[kWidth]) {
  const auto at = [&](uint32_t column) {
    constexpr int kBytes = static_cast<int>(sizeof(T)) / kUnit<T, kKept>;
    return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(row) + column * kBytes);
  };
  constexpr int kPart = kWidth < 4 ? kWidth : 4;
#pragma unroll
  for (int part = 0; part < kWidth; part += kPart) {
    const auto columns = load<uint32_t, kPart>(shared.columns + x + part);
    const auto weights = load<T, kPart>(shared.weights + x + part);
#pragma unroll
    for (int j = 0; j < kPart; ++j) {
      const T left = at(columns.at[j] & 0xffff), right = at(columns.at[j] >> 16);
      out[part + j] = (1 - weights.at[j]) * left + weights.at[j] * right;  // keeps infinities
    }
    keep_order();  // or nvcc reads for all parts first, for which registers are too few
  }
}

// out = logits + the enlarged maps, both [cells, H, W], which may be one tensor; maps [cells, S, S]. kWidth
// pixels by one instruction. kKept: plan.lines of the map are kept in shared memory.
template <class S, int kWidth, bool kKept>
__global__ void __launch_bounds__(kStreamThreads, (kStreamBlocks<S, kKept>))
    attention_residual_stream_kernel(const S* logits, S* out, const accumulator_t<S>* maps, Sizes size,
                                     StreamPlan<accumulator_t<S>> plan) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(shared, StreamShared<T>);
  SOLO_ATTN_DYNAMIC_SHARED(T, kept);
  const int index = static_cast<int>(blockIdx.x), other = index / plan.parts;
  const int64_t d0 = static_cast<int64_t>(index % plan.parts) * plan.bands * plan.rows;
  const int64_t x0 = static_cast<int64_t>(other % plan.tiles) * plan.tile, cell = other / plan.tiles;
  const int runs = static_cast<int>(min(static_cast<int64_t>(plan.tile), size.width - x0)) / kWidth;
  const int band = static_cast<int>(threadIdx.x) / runs, x = static_cast<int>(threadIdx.x) % runs * kWidth;
  const int some = static_cast<int>(min(static_cast<int64_t>(plan.bands * plan.rows), size.height - d0));
  const int first = band * plan.rows, count = band < plan.bands ? min(plan.rows, some - first) : 0;

  const int64_t offset = cell * size.pixels() + (d0 + first) * size.width + x0 + x;
  const S* from = logits + offset;
  S* to = out + offset;
  Run<S, kWidth> ahead[kStreamAhead];
#pragma unroll
  for (int k = 0; k < kStreamAhead; ++k, from += size.width) {
    if (k < count) ahead[k] = load_once<S, kWidth>(from);
  }

  const int side = static_cast<int>(size.side);
  const int top = kKept ? axis_tap<T>(plan.y, static_cast<int>(d0)).low : 0;
#pragma unroll 1
  for (int e = threadIdx.x; e < runs * kWidth; e += kStreamThreads) {
    const auto tap = pair_tap<T>(plan.x, static_cast<int>(x0) + e);
    const int low = tap.place >> 1, high = (tap.place + 1) >> 1;
    shared.columns[e] = static_cast<uint32_t>(low | high << 16) * kUnit<T, kKept>;
    shared.weights[e] = tap.weight;
  }
#pragma unroll 1
  for (int e = threadIdx.x; e < some; e += kStreamThreads) {
    shared.y[e] = pair_tap<T>(plan.y, static_cast<int>(d0) + e);
    shared.y[e].place -= 2 * top;
  }
  wait_for_previous();
  const T* map = maps + cell * size.cells();
  if constexpr (kKept) {
    const T* rows = map + top * side;
    const int lines = min(plan.lines, side - top);
#pragma unroll 4
    for (int e = threadIdx.x; e < lines * side; e += kStreamThreads) kept[e] = rows[e];
    map = kept;
  }
  __syncthreads();

  int at = -3;  // the place that `upper` and `lower` are of
  T upper[kWidth], lower[kWidth];
  for (int begin = 0; begin < count; begin += kStreamAhead) {
#pragma unroll
    for (int u = 0; u < kStreamAhead; ++u) {
      const int k = begin + u;
      if (k >= count) break;
      const PairTap<T> tap = shared.y[first + k];
      if (tap.place != at) {
        const T* row = map + static_cast<int64_t>(tap.place >> 1) * side;
        if (tap.place >> 1 == (at + 1) >> 1) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) upper[j] = lower[j];
        } else {
          enlarge<kWidth, kKept>(shared, x, row, upper);
        }
        enlarge<kWidth, kKept>(shared, x, tap.between() ? row + side : row, lower);
        at = tap.place;
      }
      Run<S, kWidth> pixels;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const T half = static_cast<T>(ahead[u].at[j]) + (1 - tap.weight) * upper[j];
        pixels.at[j] = static_cast<S>(half + tap.weight * lower[j]);
      }
      store_once(to, pixels);
      to += size.width;
      if (k + kStreamAhead < count) ahead[u] = load_once<S, kWidth>(from);
      from += size.width;
    }
  }
}

}  // namespace solo_attn::attention_residual
