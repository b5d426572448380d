// How threads paste cells into the original image: strips of columns of a cell's map, transposed, then column
// by column.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "../common/bits.h"
#include "../common/lanes.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "../common/scratch.h"
#include "../common/shared_table.h"
#include "paste_masks_arguments.h"

namespace solo_attn::paste_masks {

constexpr int64_t kWord = 64;

// A strip of the map at stride 4, transposed: its column x is `map + (x - wanted_x.begin) * stride`, and has
// room for slack after it.
template <class S, class T>
struct Transpose {
  // Rows that are turned together: their parts of a column are one line of memory, which is written once.
  static constexpr int64_t kRows = kLanes;

  // Also the largest value of each row, in `most_y`, and of each column of the strip, in `most_x`; NaN, which
  // is above nothing, counts as the least. `lines` has room for kRows rows of the strip.
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Probabilities<S, T> from, T* __restrict lines, T* __restrict map,
                                   int64_t stride, T* __restrict most_x, T* __restrict most_y) {
    const T least = -std::numeric_limits<T>::infinity();
    const int64_t begin = from.wanted_x.begin, count = from.wanted_x.end - begin, wide = padded(count);
    for (int64_t c = 0; c < count; ++c) most_x[c] = least;
    for (int64_t top = from.wanted_y.begin, bottom; top < from.wanted_y.end; top = bottom) {
      bottom = std::min(vector_begin(top) + kRows, from.wanted_y.end);
      for (int64_t y = top; y < bottom; ++y) {
        T* __restrict line = lines + (y - top) * wide;
        const T weight = from.rows.weight[y];
        const T* __restrict above = from.template row<isa>(from.rows.low[y]) + begin;
        const T* __restrict below = from.template row<isa>(from.rows.high[y]) + begin;
        for (int64_t c = 0; c < count; ++c) line[c] = lerp(above[c], below[c], weight);
        for (int64_t c = count; c < wide; ++c) line[c] = least;
        for (int64_t c = 0; c < count; ++c) most_x[c] = line[c] > most_x[c] ? line[c] : most_x[c];
        most_y[y] = largest_of(line, count);
      }
      for (int64_t c = 0; c < count; ++c) {
        T* __restrict column = map + c * stride;
        for (int64_t y = top; y < bottom; ++y) column[y] = lines[(y - top) * wide + c];
      }
    }
  }
};

#if defined(SOLO_ATTN_X86)
// Bit i of the words: lerp(left[i], right[i], weight) > threshold. Whole vectors are read, and bits from
// `count` on have no meaning.
SOLO_ATTN_AVX512 inline void above_avx512(const float* left, const float* right, float weight,
                                          float threshold, int64_t count, uint64_t* words) {
  const __m512 share = _mm512_set1_ps(weight), cut = _mm512_set1_ps(threshold);
  for (int64_t i = 0; i < count; i += kWord) {
    uint64_t word = 0;
    const int64_t end = std::min(kWord, count - i);
    for (int64_t bit = 0; bit < end; bit += 16) {
      const __m512 a = _mm512_loadu_ps(left + i + bit), b = _mm512_loadu_ps(right + i + bit);
      const __m512 value = _mm512_fmadd_ps(share, _mm512_sub_ps(b, a), a);
      word |= static_cast<uint64_t>(_mm512_cmp_ps_mask(value, cut, _CMP_GT_OQ)) << bit;
    }
    words[i / kWord] = word;
  }
}
#endif

// What is left to do with a transposed strip: to the padded input and to the original image, in y and in x.
template <class T>
struct Paste {
  const T* map;
  int64_t first;  // column of the map
  int64_t stride;
  Taps<T> padded_y, padded_x, original_y, original_x;
  Range y, x;  // the box of the original image that may hold a set pixel
  T* store;    // size()
  int64_t enlarged[2];
  int64_t blended[2];

  static int64_t size(int64_t padded_height, int64_t height) {
    return padded(padded_height) + kSlack + 4 * (padded(height) + kSlack);
  }

  SOLO_ATTN_INLINE T* line(int64_t which) {
    return store + padded(padded_y.out) + kSlack + which * (padded(original_y.out) + kSlack);
  }

  // Column c of the map, upsampled in y to the original image.
  template <Isa isa>
  SOLO_ATTN_INLINE const T* tall(int64_t c) {
    T* out = line(c & 1);
    if (enlarged[c & 1] == c) return out;
    enlarged[c & 1] = c;
    const int64_t begin = original_y.low[y.begin], end = original_y.high[y.end - 1] + 1;
    mix_taps<isa>(map + (c - first) * stride, padded_y, begin, end, store);
    mix_taps<isa>(store, original_y, y.begin, y.end, out);
    return out;
  }

  // Column c of the padded input.
  template <Isa isa>
  SOLO_ATTN_INLINE const T* wide(int64_t c) {
    T* __restrict out = line(2 + (c & 1));
    if (blended[c & 1] == c) return out;
    blended[c & 1] = c;
    const T weight = padded_x.weight[c];
    const T* __restrict left = tall<isa>(padded_x.low[c]);
    const T* __restrict right = tall<isa>(padded_x.high[c]);
    for (int64_t i = y.begin; i < y.end; ++i) out[i] = lerp(left[i], right[i], weight);
    return out;
  }

  // Rows y of column c of the original image, as words, of which the bits after the last row have no meaning;
  // `bytes` has room for the rows, rounded up to words.
  template <Isa isa>
  SOLO_ATTN_INLINE void column(int64_t c, T threshold, uint8_t* __restrict bytes, uint64_t* words) {
    const T weight = original_x.weight[c];
    const T* __restrict left = wide<isa>(original_x.low[c]) + y.begin;
    const T* __restrict right = wide<isa>(original_x.high[c]) + y.begin;
    const int64_t count = y.end - y.begin;
#if defined(SOLO_ATTN_X86)
    if constexpr (isa == Isa::avx512 && std::is_same_v<T, float>) {
      return above_avx512(left, right, weight, threshold, count, words);
    }
#endif
    for (int64_t i = 0; i < count; ++i) bytes[i] = lerp(left[i], right[i], weight) > threshold;
    pack_row<isa>(bytes, count, words);
  }
};

// Every step from the inputs to the original image, as tables, and how threads share the work.
//
// A job keeps the words of Job::kColumns columns at a time. It is told of each cell k: `begin(k, strips)`,
// then for each strip, by any thread, `add(k, i, columns, paste, threshold, bytes, words)`, which makes what
// is set in these columns of the original image, then `end(k)`. The strips, in order, have all columns.
template <class S, class T>
class Canvas {
 public:
  Canvas(const Tensor& coarse, const std::optional<Tensor>& attention, const Sizes& s, double threshold)
      : cells_(coarse, attention, s.size, s.out_size, threshold),
        count_(coarse.size(0)),
        height_(s.out_size[0]),
        width_(s.out_size[1]),
        stride_(padded(height_) + kSlack),
        threshold_(static_cast<T>(threshold)),
        padded_y_(height_, 4 * height_),
        padded_x_(width_, 4 * width_),
        original_y_(s.image_size[0], s.original_size[0]),
        original_x_(s.image_size[1], s.original_size[1]) {}

  // Whether threads share each cell, as where there are few. Of many each is made by one thread, and so are
  // all where there is only one.
  bool shared() const { return thread_count() > 1 && count_ < 4 * thread_count(); }

  template <class Job>
  void run(Job& job) const {
    if (shared()) return by_all(job);
    parallel_dynamic(count_, kWorthwhile, [&](const auto& next) {
      Room room(*this, Job::kColumns);
      for (int64_t k = next(); k >= 0; k = next()) {
        const Outline outline = outline_of(k, room.line.get());
        const int64_t strips = strips_of(outline, 1);
        job.begin(k, strips);
        for (int64_t i = 0; i < strips; ++i) add(job, k, i, strips, outline, room);
        job.end(k);
      }
    });
  }

 private:
  using Table = SharedTable<TapTable<T>>;

  // A strip of a map has about as many bytes: two of them fit into a core's own cache.
  static constexpr int64_t kStripBytes = 192 << 10;

  // What is known of a cell before its map is made: the box that may hold a set pixel, and the part of the
  // map that it needs.
  struct Outline {
    Box box;
    Box map;
  };

  // The memory of a thread. `columns`: whose words are kept.
  struct Room {
    Room(const Canvas& canvas, int64_t columns)
        : line(scratch<T>(canvas.cells_.room())),
          most_x(scratch<T>(padded(canvas.width_))),
          most_y(scratch<T>(canvas.height_)),
          store(scratch<T>(Paste<T>::size(4 * canvas.height_, canvas.original_y_.view().out))),
          bytes(scratch<uint8_t>(tall(canvas) * kWord)),
          words(scratch<uint64_t>(tall(canvas) * columns)) {}

    static int64_t tall(const Canvas& canvas) { return (canvas.original_y_.view().out + kWord - 1) / kWord; }

    // A strip of the map, and the rows that are turned.
    T* strip(int64_t columns, int64_t stride) {
      const int64_t wanted = padded(columns) * (stride + Transpose<S, T>::kRows);
      if (wanted > held) map = scratch<T>(held = wanted);
      return map.get();
    }

    Scratch<T> line, most_x, most_y, store, map;
    Scratch<uint8_t> bytes;
    Scratch<uint64_t> words;
    int64_t held = 0;
  };

  template <class Job>
  void by_all(Job& job) const {
    struct Strip {
      int64_t cell, i;
    };
    std::vector<Outline> outlines(count_);
    parallel_dynamic(count_, kWorthwhile / 2, [&](const auto& next) {
      const auto line = scratch<T>(cells_.room());
      for (int64_t k = next(); k >= 0; k = next()) outlines[k] = outline_of(k, line.get());
    });
    std::vector<Strip> todo;
    std::vector<int64_t> strips(count_);
    std::vector<std::atomic<int64_t>> left(count_);
    for (int64_t k = 0; k < count_; ++k) {
      left[k] = strips[k] = strips_of(outlines[k], (4 * thread_count() + count_ - 1) / count_);
      job.begin(k, strips[k]);
      for (int64_t i = 0; i < strips[k]; ++i) todo.push_back({k, i});
    }
    parallel_dynamic(static_cast<int64_t>(todo.size()), kWorthwhile, [&](const auto& next) {
      Room room(*this, Job::kColumns);
      for (int64_t item = next(); item >= 0; item = next()) {
        const auto [k, i] = todo[item];
        add(job, k, i, strips[k], outlines[k], room);
        if (--left[k] == 0) job.end(k);
      }
    });
  }

  // Into how many strips a cell is cut: `wanted` ones, if each is work enough, and more for the sake of the
  // cache.
  int64_t strips_of(const Outline& outline, int64_t wanted) const {
    const int64_t columns = outline.box.x.end - outline.box.x.begin;
    const int64_t pixels = columns * (outline.box.y.end - outline.box.y.begin);
    const int64_t bytes =
        (outline.map.x.end - outline.map.x.begin) * stride_ * static_cast<int64_t>(sizeof(T));
    const int64_t strips = std::max(bytes / kStripBytes + 1, std::min(wanted, pixels / kWorthwhile));
    return std::clamp<int64_t>(strips, 1, std::max<int64_t>(1, columns / kWord));
  }

  // `line` has room for cells_.room() elements.
  Outline outline_of(int64_t k, T* line) const {
    const Box box = cells_.bounds(k, line);
    Range y = forth(padded_y_, original_y_, box.y), x = forth(padded_x_, original_x_, box.x);
    if (y.empty() || x.empty()) return {{{0, 0}, {0, 0}}, {{0, 0}, {0, 0}}};
    y.begin = vector_begin(y.begin);
    return {{y, x}, {back(padded_y_, original_y_, y), back(padded_x_, original_x_, x)}};
  }

  // The i-th strip of cell k; of an empty box too, of which nothing is set.
  template <class Job>
  void add(Job& job, int64_t k, int64_t i, int64_t strips, const Outline& outline, Room& room) const {
    const Range columns = part_of(outline.box.x, i, strips);
    Range map_x = back(padded_x_, original_x_, columns);
    map_x.begin = vector_begin(map_x.begin);
    const int64_t wide = map_x.end - map_x.begin;
    T* map = room.strip(wide, stride_);
    Box box{{0, 0}, {0, 0}};
    if (!columns.empty()) {
      call<Transpose<S, T>>(cells_.at(k, {outline.map.y, map_x}, room.line.get()),
                            map + padded(wide) * stride_, map, stride_, room.most_x.get(), room.most_y.get());
      box = closer({{outline.box.y, columns}, {outline.map.y, map_x}}, room);
    }
    const Paste<T> paste{map,
                         map_x.begin,
                         stride_,
                         padded_y_.view(),
                         padded_x_.view(),
                         original_y_.view(),
                         original_x_.view(),
                         box.y,
                         box.x,
                         room.store.get(),
                         {-1, -1},
                         {-1, -1}};
    const Range own{i == 0 ? 0 : columns.begin, i + 1 == strips ? original_x_.view().out : columns.end};
    job.add(k, i, own, paste, threshold_, room.bytes.get(), room.words.get());
  }

  // The box of a strip, now that probabilities are known.
  Box closer(const Outline& strip, const Room& room) const {
    const T cut = threshold_ * (1 - 8 * std::numeric_limits<T>::epsilon());
    const auto tight = [&](const T* most, Range range) {
      Range live{0, range.end - range.begin};
      while (!live.empty() && most[live.begin] <= cut) ++live.begin;
      while (!live.empty() && most[live.end - 1] <= cut) --live.end;
      return Range{range.begin + live.begin, range.begin + live.end};
    };
    const Range y = tight(room.most_y.get() + strip.map.y.begin, strip.map.y);
    const Range x = tight(room.most_x.get(), strip.map.x);
    Box box{both(strip.box.y, forth(padded_y_, original_y_, y)),
            both(strip.box.x, forth(padded_x_, original_x_, x))};
    if (box.empty()) return {{0, 0}, {0, 0}};
    box.y.begin = vector_begin(box.y.begin);
    return box;
  }

  static Range both(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

  // From the map to the original image. The crop: only the taps of the image are ever looked at.
  static Range forth(const Table& padded, const Table& original, Range live) {
    return reached(original.view(), both(reached(padded.view(), live), {0, original.view().in}));
  }
  static Range back(const Table& padded, const Table& original, Range box) {
    return needed(padded.view(), needed(original.view(), box));
  }

  Cells<S, T> cells_;
  int64_t count_, height_, width_, stride_;
  T threshold_;
  Table padded_y_, padded_x_, original_y_, original_x_;
};

}  // namespace solo_attn::paste_masks
