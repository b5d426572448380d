// Probability maps of chosen cells (docs/method.md, "Inference" step 3): sigmoid(up(coarse) + up(attention))
// at the level's own size, then upsampled to `out_size`, row by row, only where a pixel can be set.
//
// An interpolated value never exceeds the largest of its taps. So where the largest logits of a row's taps
// add up to less than the threshold's logit, no pixel of the row is set, nor one of an output row that has
// only such rows as taps.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "dtypes.h"
#include "lanes.h"
#include "rows.h"
#include "scratch.h"
#include "shared_table.h"

namespace solo_attn {

struct Range {
  int64_t begin;
  int64_t end;

  bool empty() const { return begin >= end; }
};

struct Box {
  Range y;
  Range x;

  bool empty() const { return y.empty() || x.empty(); }
};

// The i-th of equal parts.
inline Range part_of(Range all, int64_t i, int64_t parts) {
  const int64_t count = all.end - all.begin;
  return {all.begin + count * i / parts, all.begin + count * (i + 1) / parts};
}

// The outputs that an input in `in` is a tap of.
template <class T>
Range reached(const Taps<T>& taps, Range in) {
  if (in.empty()) return {0, 0};
  const int64_t begin = std::lower_bound(taps.high, taps.high + taps.out, in.begin) - taps.high;
  return {begin, std::lower_bound(taps.low, taps.low + taps.out, in.end) - taps.low};
}

// The taps of the outputs `out`.
template <class T>
Range needed(const Taps<T>& taps, Range out) {
  if (out.empty()) return {0, 0};
  return {taps.low[out.begin], taps.high[out.end - 1] + 1};
}

// The largest value of each row and of each column; NaN, which is above no threshold, counts as -inf.
template <class S, class T>
struct Largest {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* map, int64_t height, int64_t width, int64_t stride, T* rows,
                                   T* __restrict columns, T* __restrict wide) {
    const int64_t last = padded(width);
    const T least = -std::numeric_limits<T>::infinity();
    for (int64_t x = 0; x < last; ++x) wide[x] = least;
    for (int64_t x = 0; x < width; ++x) columns[x] = least;
    for (int64_t i = 0; i < height; ++i) {
      const S* __restrict from = map + i * stride;
      for (int64_t x = 0; x < width; ++x) wide[x] = static_cast<T>(from[x]);
      for (int64_t x = 0; x < width; ++x) columns[x] = wide[x] > columns[x] ? wide[x] : columns[x];
      rows[i] = largest_of(wide, width);
    }
  }
};

// A logit whose probability is below the threshold even after all rounding errors.
inline double certain_logit(double threshold, double rounding) {
  return std::log(threshold / (1 - threshold)) - 1e-3 - 8 * rounding / (threshold * (1 - threshold));
}

// From the first to the last output whose taps may be above `cut`; a second map may be added.
template <class T>
Range alive(const Taps<T>& taps, const T* most, const Taps<T>& other, const T* more, T cut) {
  Range range{0, 0};
  for (int64_t d = 0; d < taps.out; ++d) {
    T bound = std::max(most[taps.low[d]], most[taps.high[d]]);
    if (more != nullptr) bound += std::max(more[other.low[d]], more[other.high[d]]);
    if (bound <= cut) continue;
    if (range.end == 0) range.begin = d;
    range.end = d + 1;
  }
  return range;
}

// The maps of one cell: rows at the level's size, computed when they are requested, from top to bottom.
template <class S, class T>
struct Probabilities {
  RowPair<S, T> coarse;
  RowPair<S, T> attention;
  Taps<T> rows;
  Taps<T> columns;
  T* store;        // one row at the level's size, slack, two rows at out_size
  Range wanted_y;  // of out_size: no pixel outside is above the threshold
  Range wanted_x;
  int64_t held[2];

  // Row i of the level's size, upsampled in x to columns wanted_x of out_size.
  template <Isa isa>
  SOLO_ATTN_INLINE const T* row(int64_t i) {
    T* out = store + padded(columns.in) + kSlack + (i & 1) * padded(columns.out);
    if (held[i & 1] == i) return out;
    held[i & 1] = i;
    if (columns.in == columns.out) {
      probability_row<isa>(coarse, attention, i, out);
    } else {
      probability_row<isa>(coarse, attention, i, store);
      mix_taps<isa>(store, columns, wanted_x.begin, wanted_x.end, out);
    }
    return out;
  }

  // Sets the box that is computed; to be called before the first row is requested.
  void want(Range y, Range x) {
    wanted_y = y;
    wanted_x = x;
    const Range source = needed(columns, x);
    coarse.begin = attention.begin = vector_begin(source.begin);
    coarse.end = attention.end = source.end;
  }
};

// The inputs of an op, each contiguous, and its tap tables.
template <class S, class T>
class Cells {
 public:
  using Size = std::vector<int64_t>;

  Cells(const Tensor& coarse, const std::optional<Tensor>& attention, const Size& size, const Size& out_size,
        double threshold)
      : coarse_(torch::stable::contiguous(coarse)),
        attention_(attention ? torch::stable::contiguous(*attention) : coarse_),
        plain_(!attention),
        side_(plain_ ? 0 : attention_.size(1)),
        height_(coarse.size(1)),
        width_(coarse.size(2)),
        coarse_rows_(height_, size[0]),
        coarse_columns_(width_, size[1]),
        attention_rows_(side_, plain_ ? 0 : size[0]),
        attention_columns_(side_, plain_ ? 0 : size[1]),
        rows_(size[0], out_size[0]),
        columns_(size[1], out_size[1]),
        cut_(static_cast<T>(certain_logit(threshold, std::numeric_limits<T>::epsilon()))) {}

  int64_t room() const {
    return std::max(maps_room() + padded(columns_.view().in) + kSlack + 2 * padded(columns_.view().out),
                    padded(height_) + 2 * padded(width_) + 3 * padded(side_));
  }

  // The map of cell k in a box of out_size, in room() elements of scratch memory.
  Probabilities<S, T> at(int64_t k, Box box, T* store) const {
    T* second = store + RowPair<S, T>::size(width_, coarse_columns_.view().out);
    Probabilities<S, T> map{
        RowPair<S, T>::over(logits(k), coarse_rows_.view(), coarse_columns_.view(), store),
        RowPair<S, T>::over(added(k), attention_rows_.view(), attention_columns_.view(), second),
        rows_.view(),
        columns_.view(),
        store + maps_room(),
        {0, 0},
        {0, 0},
        {-1, -1}};
    if (!box.empty()) map.want(box.y, box.x);
    return map;
  }

  // The box of cell k outside of which no pixel is above the threshold, from the begin of a vector on; in
  // room() elements of scratch memory.
  Box bounds(int64_t k, T* store) const {
    const Taps<T> y = coarse_rows_.view(), x = coarse_columns_.view();
    const Taps<T> other_y = attention_rows_.view(), other_x = attention_columns_.view();
    T* most_y = store;
    T* most_x = most_y + padded(height_);
    T* more_y = most_x + padded(width_);
    T* more_x = more_y + padded(side_);
    T* wide = more_x + padded(side_);
    call<Largest<S, T>>(logits(k), height_, width_, width_, most_y, most_x, wide);
    if (!plain_) call<Largest<S, T>>(added(k), side_, side_, side_, more_y, more_x, wide);
    const Range live_y = alive<T>(y, most_y, other_y, plain_ ? nullptr : more_y, cut_);
    const Range live_x = alive<T>(x, most_x, other_x, plain_ ? nullptr : more_x, cut_);
    Box box{reached(rows_.view(), live_y), reached(columns_.view(), live_x)};
    if (box.empty()) return {{0, 0}, {0, 0}};
    box.x.begin = vector_begin(box.x.begin);
    return box;
  }

 private:
  const S* logits(int64_t k) const { return coarse_.template const_data_ptr<S>() + k * height_ * width_; }

  const S* added(int64_t k) const {
    return plain_ ? nullptr : attention_.template const_data_ptr<S>() + k * side_ * side_;
  }

  int64_t maps_room() const {
    return RowPair<S, T>::size(width_, coarse_columns_.view().out) +
           RowPair<S, T>::size(side_, attention_columns_.view().out);
  }

  Tensor coarse_, attention_;
  bool plain_;
  int64_t side_, height_, width_;
  SharedTable<TapTable<T>> coarse_rows_, coarse_columns_, attention_rows_, attention_columns_, rows_,
      columns_;
  T cut_;
};

}  // namespace solo_attn
