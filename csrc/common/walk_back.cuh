// The transpose of the walk down: the gradients of both inputs from the pixels of their result, in one pass.
//
// A thread walks down kColumns columns and adds each pixel to the row of an input above it and to the one
// below, in registers. A row that no more pixels reach goes to shared memory; a few of these later the block
// adds along them, a thread for each input. Every sum is added in one order, there is no atomic.
//
// A block owns a band of each input's rows, and takes all the rows of pixels that have a part in them: the
// few rows where bands meet are taken twice. Columns beyond kWalkThreads * kColumns are added in turns.
#pragma once

#include "bilinear.h"
#include "ptx.h"
#include "walk.cuh"

namespace solo_attn {

constexpr int kWalkLines = 4;              // rows of an input that are added along x at a time
constexpr int64_t kWalkShared = 78 << 10;  // with what a kernel has of its own, the 99 KB of a block on 8.6

// Neighbouring lanes read columns 2, 4 or 8 apart, and so no bank twice.
SOLO_ATTN_HOST_DEVICE inline int skewed_column(int x) { return x + (x >> 5); }

struct WalkBackPlan {
  int threads;
  int columns;  // at a time
  int pitch;    // of a row in shared memory
  int bands;

  // Threads that take all columns at a time, or the most of a block.
  static int most_threads(int64_t width, int each) {
    const int64_t runs = ceil_div<int64_t>(width, each);
    return static_cast<int>(std::min<int64_t>(kWalkThreads, ceil_div<int64_t>(runs, kWarp) * kWarp));
  }
  // Of so many threads, or of fewer where shared memory is short. Sums are of type T, inputs so many columns
  // wide, 0 of one that no gradient is wanted of.
  template <class T>
  static WalkBackPlan of(int64_t count, int64_t rows_in, int threads, int each, int64_t coarse,
                         int64_t attention) {
    WalkBackPlan plan;
    plan.threads = threads;
    plan.take(each);
    while (plan.threads > kWarp && plan.bytes<T>(coarse, attention) > kWalkShared) {
      plan.threads -= kWarp;
      plan.take(each);
    }
    // Eight rows of the finer input at least, as where bands meet pixels are taken twice.
    const int64_t wanted = ceil_div<int64_t>(kWalkBlocks, std::max<int64_t>(1, count));
    const int64_t most = kPlayed ? rows_in / 2 : rows_in / 16;
    plan.bands = static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
    return plan;
  }
  bool turns(int64_t width) const { return width > columns; }
  template <class T>
  SOLO_ATTN_HOST_DEVICE int64_t map_bytes(int64_t in) const {
    // Where inputs begin is kept in shared memory, of 16 bytes' alignment.
    return ((kWalkLines + 1) * pitch * static_cast<int64_t>(sizeof(T)) + (in + 2) * 4 + 15) / 16 * 16;
  }
  template <class T>
  size_t shared_bytes(const char* op, int64_t coarse, int64_t attention) const {
    const int64_t all = bytes<T>(coarse, attention);
    check(all <= kWalkShared, op, ": expected inputs whose rows' places fit in ", kWalkShared,
          " bytes of shared memory, got rows of ", coarse, " and ", attention);
    return static_cast<size_t>(all);
  }

 private:
  void take(int each) {
    columns = threads * each;
    pitch = skewed_column(columns) + 1;
  }
  template <class T>
  int64_t bytes(int64_t coarse, int64_t attention) const {
    return (coarse == 0 ? 0 : map_bytes<T>(coarse)) + (attention == 0 ? 0 : map_bytes<T>(attention));
  }
};

// One of `bands` bands of an input's rows, and the pixels that have a part in it. Of 0 bands, nothing.
struct WalkBand {
  int begin, end;    // rows of the input
  int first, until;  // rows of pixels

  __device__ __forceinline__ WalkBand(const TapAxis& y, int band, int bands)
      : begin(0), end(0), first(y.out), until(0) {
    if (bands == 0) return;
    begin = static_cast<int>(static_cast<int64_t>(band) * y.in / bands);
    end = static_cast<int>(static_cast<int64_t>(band + 1) * y.in / bands);
    if (empty()) return;
    first = static_cast<int>(bilinear_first(begin - 1, y.in, y.out));
    until = static_cast<int>(bilinear_first(end, y.in, y.out));
  }
  __device__ __forceinline__ bool empty() const { return begin == end; }
};

// One input's share of the walk. O is the gradient's type.
template <class T, class O, int kColumns>
class AdjointRows {
 public:
  // `to` is the cell's gradient; `memory` is map_bytes() of shared memory, which a barrier must make known to
  // the block before rows are reached. `first` is the first row of pixels.
  __device__ __forceinline__ void start(O* to, const TapAxis& y, const TapAxis& x, const WalkBand& band,
                                        int first, T* memory, int pitch, int x0, int columns) {
    to_ = to;
    in_ = x.in;
    begin_ = band.begin;
    end_ = band.end;
    at_ = min(axis_tap<T>(y, first).low, band.begin);
    held_ = 0;
    pitch_ = pitch;
    more_ = x0 > 0;
    weights_ = memory;
    lines_ = memory + pitch;
    starts_ = reinterpret_cast<int*>(lines_ + kWalkLines * pitch);
    for (int k = threadIdx.x; k < columns; k += blockDim.x) {
      weights_[skewed_column(k)] = axis_tap<T>(x, x0 + k).weight;
    }
    for (int k = threadIdx.x; k < kWalkLines * pitch; k += blockDim.x) lines_[k] = 0;
    for (int j = threadIdx.x; j < in_ + 2; j += blockDim.x) {
      const int64_t first = bilinear_first(j - 1, x.in, x.out) - x0;
      starts_[j] = static_cast<int>(max(int64_t(0), min(first, static_cast<int64_t>(columns))));
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) upper_[j] = lower_[j] = 0;
  }
  // Rows above `row` get no more pixels. The whole block comes along, as `row` is one for all its threads.
  __device__ __forceinline__ void reach(int row, int column) {
#pragma unroll 1
    while (at_ < row) {
      if (at_ >= begin_ && at_ < end_) {
        T* line = lines_ + held_ * pitch_ + skewed_column(column);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) line[j] = upper_[j];
        ++held_;
      }
      ++at_;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        upper_[j] = lower_[j];
        lower_[j] = 0;
      }
      if (held_ == kWalkLines || (held_ > 0 && at_ == end_)) flush();
    }
  }
  // By a PairTap of their row.
  __device__ __forceinline__ void add(const T (&pixels)[kColumns], T weight, int place) {
    const bool between = (place & 1) != 0;
    const T near = between ? 1 - weight : T(1);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) upper_[j] += near * pixels[j];
    if (between) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) lower_[j] += weight * pixels[j];
    }
  }

 private:
  // Along the rows that are held, the last of which is row at_ - 1. All kWalkLines are read: of lines that
  // hold nothing new the sums are left.
  __device__ __forceinline__ void flush() {
    __syncthreads();
    O* to = to_ + static_cast<int64_t>(at_ - held_) * in_;
#pragma unroll 1
    for (int j = threadIdx.x; j < in_; j += blockDim.x) {
      const int middle = starts_[j + 1], last = starts_[j + 2];
      T sums[kWalkLines] = {};
#pragma unroll 1
      for (int x = starts_[j]; x < last; ++x) {
        const int column = skewed_column(x);
        const T weight = weights_[column], part = x < middle ? weight : 1 - weight;
        T held[kWalkLines];
#pragma unroll
        for (int k = 0; k < kWalkLines; ++k) held[k] = lines_[k * pitch_ + column];
        keep_order();    // or nvcc branches around the reads
        if (part > 0) {  // else the pixel falls on the input before
#pragma unroll
          for (int k = 0; k < kWalkLines; ++k) sums[k] += part * held[k];
        }
      }
#pragma unroll
      for (int k = 0; k < kWalkLines; ++k) {
        if (k >= held_) break;
        O& place = to[static_cast<int64_t>(k) * in_ + j];
        place = static_cast<O>(more_ ? static_cast<T>(place) + sums[k] : sums[k]);
      }
    }
    __syncthreads();
    held_ = 0;
  }

  O* to_;
  T *weights_, *lines_;
  int* starts_;
  int in_, begin_, end_, at_, held_, pitch_;
  bool more_;
  T upper_[kColumns], lower_[kColumns];
};

// Where both gradients of one cell go; null where one is not wanted.
template <class O>
struct CellGradients {
  O* coarse;
  O* attention;

  // From the first cell's to those of cell number `cell`.
  template <class S>
  __device__ __forceinline__ void to_cell(const CellMaps<S>& maps, int64_t cell) {
    if (coarse != nullptr) coarse += cell * maps.coarse_y.in * maps.coarse_x.in;
    if (attention != nullptr) attention += cell * maps.attention_y.in * maps.attention_x.in;
  }
};

// Adds what `pixels` gives as the gradient of the result to the gradients of the block's `band` of one cell's
// inputs. It takes `columns` columns from `x0` on, those before were taken earlier. start(begin, end) makes
// `pixels` for the rows [begin, end), of which pixels(y, its taps, out) writes row y in a thread's columns;
// what it writes beyond the last column is not read.
template <int kColumns, class S, class O, class F>
__device__ __forceinline__ void walk_back(const CellMaps<S>& maps, RowTaps<accumulator_t<S>>* taps,
                                          const WalkBackPlan& plan, int band, const CellGradients<O>& to,
                                          accumulator_t<S>* memory, int x0, int columns, const F& start) {
  using T = accumulator_t<S>;
  const int column = static_cast<int>(threadIdx.x) * kColumns;
  const bool coarse_wanted = to.coarse != nullptr, attention_wanted = to.attention != nullptr;
  const WalkBand coarse_band(maps.coarse_y, band, coarse_wanted ? plan.bands : 0);
  const WalkBand attention_band(maps.attention_y, band, attention_wanted ? plan.bands : 0);
  const int begin = min(coarse_band.first, attention_band.first);
  if (coarse_band.empty() && attention_band.empty()) return;
  // Where an input is reduced, its rows may have no pixel: then they are 0.
  const int end = max(begin, max(coarse_band.until, attention_band.until));
  AdjointRows<T, O, kColumns> coarse, attention;
  if (coarse_wanted) {
    coarse.start(to.coarse, maps.coarse_y, maps.coarse_x, coarse_band, begin, memory, plan.pitch, x0,
                 columns);
    memory += plan.map_bytes<T>(maps.coarse_x.in) / sizeof(T);
  }
  if (attention_wanted) {
    attention.start(to.attention, maps.attention_y, maps.attention_x, attention_band, begin, memory,
                    plan.pitch, x0, columns);
  }
  auto pixels = start(begin, end);
  walk_down(maps, taps, begin, end, [&](int y, const RowTaps<T>& row) {
    T gradient[kColumns];
    pixels(y, row, gradient);
    if (coarse_wanted) {
      coarse.reach(row.coarse >> 1, column);
      coarse.add(gradient, row.coarse_weight, row.coarse);
    }
    if (attention_wanted) {
      attention.reach(row.attention >> 1, column);
      attention.add(gradient, row.attention_weight, row.attention);
    }
  });
  if (begin == end) __syncthreads();  // as the walk does, before rows are reached
  if (coarse_wanted) coarse.reach(coarse_band.end, column);
  if (attention_wanted) attention.reach(attention_band.end, column);
}

}  // namespace solo_attn
