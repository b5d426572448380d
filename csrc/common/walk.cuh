// The walk down: the one loop of the CUDA ops on chosen cells (upsample_add, dice_loss, mask_bits,
// paste_masks).
//
// A block takes a band of rows of one cell's result, a thread kColumns neighbouring columns of it. A row of
// an input is enlarged along x once, into registers, when the walk reaches it; a pixel is then two
// multiply-adds of the two rows it lies between, for each input. Taps along x stay in registers, those of the
// rows in shared memory, where one read of 16 bytes brings both inputs'. What an op does with a pixel is its
// own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "access.h"
#include "bilinear.h"
#include "cells.h"
#include "check.h"
#include "dtypes.h"
#include "launch.h"

namespace solo_attn {

constexpr int kWalkThreads = 256;            // of a block, at most
constexpr int kWalkRows = kPlayed ? 8 : 64;  // whose taps are in shared memory at a time; the shim's are few
constexpr int64_t kWalkBlocks = 1024;        // that fill the GPU: 8 of 3 warps for each SM of an H100 or H200
// Blocks of that many threads for which an SM has registers. nvcc would spill two of them for sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kWalkResident = 2;
#else
constexpr int kWalkResident = 3;
#endif
constexpr int64_t kWalkMost = int64_t(1) << 27;  // rows and columns

// Of a row of pixels, in the coarse logits and in the attention rows: each a PairTap.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) RowTaps {
  T coarse_weight;
  T attention_weight;
  int coarse;
  int attention;
};

// All cells' inputs, contiguous.
template <class S>
struct CellMaps {
  const S* coarse;
  const S* attention;
  TapAxis coarse_y, coarse_x, attention_y, attention_x;

  __device__ __forceinline__ bool both() const { return attention_y.in > 0; }
};

// Calls row(y, its taps) for `count` rows from `first` on, kWalkRows at most. All threads of the block come
// along.
template <class S, class F>
__device__ __forceinline__ void walk_band(const CellMaps<S>& maps, RowTaps<accumulator_t<S>>* taps, int first,
                                          int count, const F& row) {
  using T = accumulator_t<S>;
  for (int k = threadIdx.x; k < count; k += blockDim.x) {
    const auto coarse = pair_tap<T>(maps.coarse_y, first + k);
    auto attention = coarse;
    if (maps.both()) attention = pair_tap<T>(maps.attention_y, first + k);
    taps[k] = {coarse.weight, attention.weight, coarse.place, attention.place};
  }
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < count; ++k) {
    if constexpr (sizeof(S) == 2) {  // may have eight columns, which leave no registers for all of them
      row(first + k, taps[k]);
    } else {
      RowTaps<T> now;
      memcpy(&now, &taps[k], sizeof(now));
      row(first + k, now);
    }
  }
}

// The same for the rows [begin, end), however many.
template <class S, class F>
__device__ __forceinline__ void walk_down(const CellMaps<S>& maps, RowTaps<accumulator_t<S>>* taps, int begin,
                                          int end, const F& row) {
  for (int first = begin; first < end; first += kWalkRows) {
    if (first > begin) __syncthreads();
    walk_band(maps, taps, first, min(kWalkRows, end - first), row);
  }
}

// The same address, whose parts the compiler cannot take apart: it would add up 64 bits anew for each of a
// row's columns, in six instructions instead of one.
template <class S>
__device__ __forceinline__ const S* opaque(const S* address) {
#if !defined(SOLO_ATTN_SHIM)
  asm("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// The two rows of one input that a thread's pixels lie between, enlarged along x.
template <class S, int kColumns>
class EnlargedRows {
 public:
  using T = accumulator_t<S>;

  // `map` has rows of x.in; the columns are those of the result.
  __device__ __forceinline__ void start(const S* map, const TapAxis& x, const int (&columns)[kColumns]) {
    map_ = map;
    width_ = static_cast<uint32_t>(x.in);
    at_ = -3;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const auto tap = axis_tap<T>(x, columns[j]);
      low_[j] = static_cast<uint32_t>(tap.low);
      weight_[j] = tap.weight;
      lower_[j] = 0;
    }
  }
  // Places are asked for from top to bottom.
  __device__ __forceinline__ void reach(int place) {
    if (place == at_) return;
    // Once, where the lower row becomes the upper one; twice where rows are skipped, and at first.
#pragma unroll 1
    for (int next = place >> 1 == (at_ + 1) >> 1 ? place + 1 : place; next <= place + 1; ++next) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) upper_[j] = lower_[j];
      read(next >> 1, lower_);
    }
    at_ = place;
  }
  // sum + the pixel of column j, whose row lies `weight` after the upper one. Not a + weight (b - a), which
  // makes NaN of an infinity that both rows have.
  __device__ __forceinline__ T add(T sum, int j, T weight) const {
    return sum + (1 - weight) * upper_[j] + weight * lower_[j];
  }
  __device__ __forceinline__ T pixel(int j, T weight) const {
    return (1 - weight) * upper_[j] + weight * lower_[j];
  }

 private:
  __device__ __forceinline__ void read(int row, T (&out)[kColumns]) const {
    const S* from = opaque(map_ + static_cast<uint64_t>(static_cast<uint32_t>(row)) * width_);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const S* low = from + low_[j];
      const T far = weight_[j] > 0 ? static_cast<T>(low[1]) : T(0);  // infinite or NaN it has no part of 0
      out[j] = (1 - weight_[j]) * static_cast<T>(low[0]) + weight_[j] * far;
    }
  }

  const S* map_;
  uint32_t width_;
  int at_;
  uint32_t low_[kColumns];
  T weight_[kColumns], upper_[kColumns], lower_[kColumns];
};

// Mask logits of one cell in a thread's columns: both inputs enlarged and added.
template <class S, int kColumns>
class CellWalk {
 public:
  using T = accumulator_t<S>;

  __device__ __forceinline__ CellWalk(const CellMaps<S>& maps, int64_t cell, const int (&columns)[kColumns])
      : both_(maps.both()) {
    const int64_t pixels = static_cast<int64_t>(maps.coarse_y.in) * maps.coarse_x.in;
    coarse_.start(maps.coarse + cell * pixels, maps.coarse_x, columns);
    if (both_) {
      const int64_t cells = static_cast<int64_t>(maps.attention_y.in) * maps.attention_x.in;
      attention_.start(maps.attention + cell * cells, maps.attention_x, columns);
    }
  }
  __device__ __forceinline__ void logits(const RowTaps<T>& taps, T (&out)[kColumns]) {
    coarse_.reach(taps.coarse);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out[j] = coarse_.pixel(j, taps.coarse_weight);
    if (!both_) return;
    attention_.reach(taps.attention);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out[j] = attention_.add(out[j], j, taps.attention_weight);
  }

 private:
  bool both_;
  EnlargedRows<S, kColumns> coarse_, attention_;
};

// How [count, height, width] is cut into blocks.
struct WalkPlan {
  int width;
  int height;
  int threads;
  int tiles;  // of threads * columns columns
  int rows;   // of a band
  int bands;
  uint32_t parts;  // tiles * bands: blocks of a cell

  WalkPlan() = default;
  // `count` cells are to fill the GPU, those of other levels of the launch among them. Bands are of a
  // multiple of `step` rows and of `most_rows` at most, blocks of `most_threads`.
  WalkPlan(int64_t count, int64_t height, int64_t width, int columns, int64_t step = 1,
           int64_t most_rows = kWalkRows, int64_t most_threads = kWalkThreads)
      : width(static_cast<int>(width)), height(static_cast<int>(height)) {
    const int64_t runs = ceil_div<int64_t>(width, columns);
    const int64_t block = std::min(most_threads, ceil_div<int64_t>(runs, kWarp) * kWarp);
    threads = static_cast<int>(block);
    tiles = static_cast<int>(ceil_div(runs, block));
    const int64_t wanted = ceil_div<int64_t>(kWalkBlocks, std::max<int64_t>(1, count * tiles));
    // Fewer than eight rows do not pay for a thread's taps.
    const int64_t fair = std::max<int64_t>(8, ceil_div(height, wanted));
    rows = static_cast<int>(std::min(most_rows, ceil_div(fair, step) * step));
    bands = static_cast<int>(ceil_div<int64_t>(height, rows));
    parts = static_cast<uint32_t>(tiles) * static_cast<uint32_t>(bands);
  }
  int64_t blocks(int64_t count) const { return count * parts; }
};

// Of a block, by its number among those of its level.
struct WalkPlace {
  int64_t cell;
  int x;  // of the thread's first column
  int begin;
  int end;  // rows

  __device__ __forceinline__ WalkPlace(const WalkPlan& plan, int columns, uint32_t index) {
    const int part = static_cast<int>(index % plan.parts);
    cell = index / plan.parts;
    x = (part % plan.tiles * plan.threads + static_cast<int>(threadIdx.x)) * columns;
    begin = part / plan.tiles * plan.rows;
    end = min(begin + plan.rows, plan.height);
  }
};

// A thread's columns; past the last one it stands in, and what comes of it is not kept.
template <int kColumns>
__device__ __forceinline__ void own_columns(int x, int width, int (&columns)[kColumns]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) columns[j] = min(x + j, width - 1);
}

inline dim3 walk_grid(const char* op, int64_t blocks) {
  check(blocks <= 0x7fffffff, op, ": expected sizes that need fewer than 2^31 blocks, got ", blocks);
  return dim3(static_cast<unsigned>(blocks));
}

inline void check_walk(const char* op, const std::vector<int64_t>& edges) {
  for (const int64_t edge : edges) {
    check(edge < kWalkMost, op, ": expected fewer than 2^27 rows and columns, got ", edge);
  }
}

// What an op on chosen cells is given, checked and contiguous.
class CellInputs {
 public:
  CellInputs(const char* op, const Tensor& coarse, const std::optional<Tensor>& attention)
      : coarse_(checked(op, coarse, attention)), attention_(coarse_), both_(attention.has_value()) {
    if (both_) attention_ = torch::stable::contiguous(*attention);
    check_walk(op, {coarse_.size(1), coarse_.size(2), attention_.size(1)});
  }
  const Tensor& coarse() const { return coarse_; }
  int64_t count() const { return coarse_.size(0); }
  int64_t side() const { return both_ ? attention_.size(1) : 0; }

  // Enlarged to height x width.
  template <class S>
  CellMaps<S> maps(int64_t height, int64_t width) const {
    return {coarse_.const_data_ptr<S>(),          both_ ? attention_.const_data_ptr<S>() : nullptr,
            TapAxis::of(coarse_.size(1), height), TapAxis::of(coarse_.size(2), width),
            TapAxis::of(side(), height),          TapAxis::of(side(), width)};
  }

 private:
  static Tensor checked(const char* op, const Tensor& coarse, const std::optional<Tensor>& attention) {
    check_cells(op, coarse, attention);
    return torch::stable::contiguous(coarse);
  }

  Tensor coarse_, attention_;
  bool both_;
};

}  // namespace solo_attn
