// How threads paste cells into the original image: the map of a cell, transposed, then column by column.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "../common/bits.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "paste_masks_arguments.h"

namespace solo_attn::paste_masks {

constexpr int64_t kWord = 64;

// The map at stride 4, transposed: column x is `map + x * stride`, and has room for slack after it.
template <class S, class T>
struct Transpose {
  // Also the largest value of each row, in `most_y`, and of each column together with what is in `most_x`;
  // NaN, which is above nothing, counts as the least. `line` has room for slack.
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Probabilities<S, T> from, T* __restrict line, T* __restrict map,
                                   int64_t stride, T* __restrict most_x, T* __restrict most_y) {
    constexpr int64_t kLanes = 16;
    typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T))));
    const T least = -std::numeric_limits<T>::infinity();
    const Range x = from.wanted_x;
    for (int64_t c = x.end; c < x.end + kLanes; ++c) line[c] = least;
    for (int64_t y = from.wanted_y.begin; y < from.wanted_y.end; ++y) {
      const T weight = from.rows.weight[y];
      const T* __restrict above = from.template row<isa>(from.rows.low[y]);
      const T* __restrict below = from.template row<isa>(from.rows.high[y]);
      for (int64_t c = x.begin; c < x.end; ++c) line[c] = lerp(above[c], below[c], weight);
      for (int64_t c = x.begin; c < x.end; ++c) map[c * stride + y] = line[c];
      for (int64_t c = x.begin; c < x.end; ++c) most_x[c] = line[c] > most_x[c] ? line[c] : most_x[c];
      Lanes most = {};
      most += least;
      for (int64_t c = x.begin; c < x.end; c += kLanes) {
        Lanes value;
        std::memcpy(&value, line + c, sizeof(value));
        most = value > most ? value : most;
      }
      most_y[y] = least;
      for (int64_t lane = 0; lane < kLanes; ++lane) most_y[y] = std::max(most_y[y], most[lane]);
    }
  }
};

// What is left to do with a transposed map: to the padded input and to the original image, in y and in x.
template <class T>
struct Paste {
  const T* map;
  int64_t stride;
  Taps<T> padded_y, padded_x, original_y, original_x;
  Range y, x;  // the box of the original image that may hold a set pixel
  T* store;    // size()
  int64_t enlarged[2];
  int64_t blended[2];

  static int64_t size(int64_t padded_height, int64_t height) {
    return padded_height + kSlack + 4 * (height + kSlack);
  }

  SOLO_ATTN_INLINE T* line(int64_t which) {
    return store + padded_y.out + kSlack + which * (original_y.out + kSlack);
  }

  // Column c of the map, upsampled in y to the original image.
  template <Isa isa>
  SOLO_ATTN_INLINE const T* tall(int64_t c) {
    T* out = line(c & 1);
    if (enlarged[c & 1] == c) return out;
    enlarged[c & 1] = c;
    const int64_t begin = original_y.low[y.begin], end = original_y.high[y.end - 1] + 1;
    mix_taps<isa>(map + c * stride, padded_y, begin, end, store);
    mix_taps<isa>(store, original_y, y.begin, y.end, out);
    return out;
  }

  // Column c of the padded input.
  template <Isa isa>
  SOLO_ATTN_INLINE const T* padded(int64_t c) {
    T* __restrict out = line(2 + (c & 1));
    if (blended[c & 1] == c) return out;
    blended[c & 1] = c;
    const T weight = padded_x.weight[c];
    const T* __restrict left = tall<isa>(padded_x.low[c]);
    const T* __restrict right = tall<isa>(padded_x.high[c]);
    for (int64_t i = y.begin; i < y.end; ++i) out[i] = lerp(left[i], right[i], weight);
    return out;
  }

  // Rows y of column c of the original image, as words; `bytes` has room for them, rounded up to words.
  template <Isa isa>
  SOLO_ATTN_INLINE void column(int64_t c, T threshold, uint8_t* __restrict bytes, uint64_t* words) {
    const T weight = original_x.weight[c];
    const T* __restrict left = padded<isa>(original_x.low[c]) + y.begin;
    const T* __restrict right = padded<isa>(original_x.high[c]) + y.begin;
    const int64_t count = y.end - y.begin;
    for (int64_t i = 0; i < count; ++i) bytes[i] = lerp(left[i], right[i], weight) > threshold;
    pack_row<isa>(bytes, count, words);
  }
};

// Every step from the inputs to the original image, as tables, and how threads share the work.
//
// A job is told of each cell k: `begin(k, parts)`, then for each i < parts, by any thread, `add(k, i, parts,
// paste, threshold, bytes, words)`, which makes the columns of the i-th part, then `end(k, box, parts)`.
template <class S, class T>
class Canvas {
 public:
  Canvas(const Tensor& coarse, const std::optional<Tensor>& attention, const Sizes& s, double threshold)
      : cells_(coarse, attention, s.size, s.out_size, threshold),
        count_(coarse.size(0)),
        height_(s.out_size[0]),
        width_(s.out_size[1]),
        stride_(height_ + kSlack),
        threshold_(static_cast<T>(threshold)),
        padded_y_(height_, 4 * height_),
        padded_x_(width_, 4 * width_),
        original_y_(s.image_size[0], s.original_size[0]),
        original_x_(s.image_size[1], s.original_size[1]) {}

  // Whether every step is shared by all threads, as for few cells. Of many each is made by one thread, and so
  // are all where there is only one.
  bool shared() const { return thread_count() > 1 && count_ < 4 * thread_count(); }

  template <class Job>
  void run(Job& job) const {
    if (!shared()) {
      return each_by_one(job, count_,
                         [&](int64_t k, const Room& room) { return std::pair(k, outline_of(k, room)); });
    }
    const int64_t group = 2 * thread_count();
    for (int64_t first = 0; first < count_; first += group) {
      by_all(job, first, std::min(group, count_ - first), group);
    }
  }

 private:
  // What is known of a cell before its map is made: the box that may hold a set pixel, and the part of the
  // map that it needs.
  struct Outline {
    Box box;
    Box map;
  };

  // The memory of a thread.
  struct Room {
    explicit Room(const Canvas& canvas)
        : height(canvas.original_y_.view().out),
          line(new T[canvas.width_ + kSlack + canvas.cells_.room()]),
          store(new T[Paste<T>::size(4 * canvas.height_, height)]),
          bytes(new uint8_t[(height + kWord - 1) / kWord * kWord]),
          words(new uint64_t[(height + kWord - 1) / kWord * kWord]) {}

    int64_t height;
    std::unique_ptr<T[]> line, store;
    std::unique_ptr<uint8_t[]> bytes;
    std::unique_ptr<uint64_t[]> words;
  };

  // `outlined(item, room)` is a cell and its outline.
  template <class Job, class F>
  void each_by_one(Job& job, int64_t count, const F& outlined) const {
    parallel_dynamic(count, kWorthwhile, [&](const auto& next) {
      const Room room(*this);
      const std::unique_ptr<T[]> map(new T[width_ * stride_]), most(new T[width_ + height_]);
      T* most_y = most.get() + width_;
      for (int64_t item = next(); item >= 0; item = next()) {
        const auto [k, outline] = outlined(item, room);
        std::fill_n(most.get(), width_, -std::numeric_limits<T>::infinity());
        draw(k, outline.map, room, map.get(), most.get(), most_y);
        const Box box = closer(outline, most.get(), most_y);
        job.begin(k, 1);
        add(job, k, 0, 1, map.get(), box, room);
        job.end(k, box, 1);
      }
    });
  }

  // Cells [first, first + count), each step in `shares` parts or more.
  template <class Job>
  void by_all(Job& job, int64_t first, int64_t count, int64_t shares) const {
    std::vector<Outline> outlines(count);
    parallel_dynamic(count, kWorthwhile / 2, [&](const auto& next) {
      const Room room(*this);
      for (int64_t c = next(); c >= 0; c = next()) outlines[c] = outline_of(first + c, room);
    });
    if (const auto order = even(outlines)) {
      return each_by_one(job, count, [&](int64_t item, const Room&) {
        const int64_t c = (*order)[item];
        return std::pair(first + c, outlines[c]);
      });
    }
    const int64_t bands = (shares + count - 1) / count;
    const std::unique_ptr<T[]> maps(new T[count * width_ * stride_]), most_y(new T[count * height_]);
    std::vector<T> most_x(count * bands * width_, -std::numeric_limits<T>::infinity());
    parallel_dynamic(count * bands, 2 * height_ * width_ / bands, [&](const auto& next) {
      const Room room(*this);
      for (int64_t item = next(); item >= 0; item = next()) {
        const int64_t c = item / bands, band = item % bands;
        const Box& map = outlines[c].map;
        draw(first + c, {part_of(map.y, band, bands), map.x}, room, maps.get() + c * width_ * stride_,
             most_x.data() + item * width_, most_y.get() + c * height_);
      }
    });
    struct Part {
      int64_t cell, i;
    };
    std::vector<Part> todo;
    std::vector<Box> boxes(count);
    std::vector<int64_t> parts(count);
    std::vector<std::atomic<int64_t>> left(count);
    for (int64_t c = 0; c < count; ++c) {
      T* most = most_x.data() + c * bands * width_;
      for (int64_t band = 1; band < bands; ++band) {
        for (int64_t x = 0; x < width_; ++x) most[x] = std::max(most[x], most[band * width_ + x]);
      }
      boxes[c] = closer(outlines[c], most, most_y.get() + c * height_);
      const int64_t columns = boxes[c].x.end - boxes[c].x.begin;
      const int64_t pixels = columns * (boxes[c].y.end - boxes[c].y.begin);
      // Columns differ in work: twice as many parts as bands.
      parts[c] = std::clamp<int64_t>(std::min(pixels / kWorthwhile, columns / kWord), 1, 2 * bands);
      left[c] = parts[c];
      job.begin(first + c, parts[c]);
      for (int64_t i = 0; i < parts[c]; ++i) todo.push_back({c, i});
    }
    parallel_dynamic(static_cast<int64_t>(todo.size()), kWorthwhile, [&](const auto& next) {
      const Room room(*this);
      for (int64_t item = next(); item >= 0; item = next()) {
        const auto [c, i] = todo[item];
        add(job, first + c, i, parts[c], maps.get() + c * width_ * stride_, boxes[c], room);
        if (--left[c] == 0) job.end(first + c, boxes[c], parts[c]);
      }
    });
  }

  // The cells, dealt to the threads from the largest to the smallest, if whole ones keep all threads busy to
  // a tenth: that takes less than sharing each.
  static std::optional<std::vector<int64_t>> even(const std::vector<Outline>& outlines) {
    const auto pixels = [&](int64_t c) {
      const Box& box = outlines[c].box;
      return static_cast<double>(box.y.end - box.y.begin) * static_cast<double>(box.x.end - box.x.begin);
    };
    std::vector<int64_t> order(outlines.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return pixels(a) > pixels(b); });
    std::vector<double> loads(thread_count(), 0);
    double total = 0;
    for (const int64_t c : order) {
      *std::min_element(loads.begin(), loads.end()) += pixels(c);
      total += pixels(c);
    }
    const double most = *std::max_element(loads.begin(), loads.end());
    if (most * static_cast<double>(loads.size()) > 1.1 * total) return std::nullopt;
    const auto count = static_cast<int64_t>(order.size()), threads = std::min(thread_count(), count);
    std::vector<int64_t> dealt(count);
    for (int64_t round = 0, c = 0; c < count; ++round) {
      for (int64_t thread = 0; thread < threads; ++thread) {
        const int64_t place = Shares::begin(thread, count, threads) + round;
        if (place < Shares::begin(thread + 1, count, threads)) dealt[place] = order[c++];
      }
    }
    return dealt;
  }

  Outline outline_of(int64_t k, const Room& room) const {
    const Box box = cells_.bounds(k, room.line.get());
    const Range y = forth(padded_y_, original_y_, box.y), x = forth(padded_x_, original_x_, box.x);
    if (y.empty() || x.empty()) return {{{0, 0}, {0, 0}}, {{0, 0}, {0, 0}}};
    return {{y, x}, {back(padded_y_, original_y_, y), back(padded_x_, original_x_, x)}};
  }

  // Makes a part of the map of cell k.
  void draw(int64_t k, Box part, const Room& room, T* map, T* most_x, T* most_y) const {
    if (part.empty()) return;
    T* line = room.line.get();
    call<Transpose<S, T>>(cells_.at(k, part, line + width_ + kSlack), line, map, stride_, most_x, most_y);
  }

  // The box, now that probabilities are known.
  Box closer(const Outline& outline, const T* most_x, const T* most_y) const {
    const T cut = threshold_ * (1 - 8 * std::numeric_limits<T>::epsilon());
    const auto tight = [&](const T* most, Range range) {
      while (!range.empty() && most[range.begin] <= cut) ++range.begin;
      while (!range.empty() && most[range.end - 1] <= cut) --range.end;
      return range;
    };
    const Box box{both(outline.box.y, forth(padded_y_, original_y_, tight(most_y, outline.map.y))),
                  both(outline.box.x, forth(padded_x_, original_x_, tight(most_x, outline.map.x)))};
    return box.empty() ? Box{{0, 0}, {0, 0}} : box;
  }

  // The i-th part of cell k; of an empty box too, of which nothing is set.
  template <class Job>
  void add(Job& job, int64_t k, int64_t i, int64_t parts, const T* map, Box box, const Room& room) const {
    const Paste<T> paste{map,
                         stride_,
                         padded_y_.view(),
                         padded_x_.view(),
                         original_y_.view(),
                         original_x_.view(),
                         box.y,
                         part_of(box.x, i, parts),
                         room.store.get(),
                         {-1, -1},
                         {-1, -1}};
    job.add(k, i, parts, paste, threshold_, room.bytes.get(), room.words.get());
  }

  static Range both(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

  // From the map to the original image. The crop: only the taps of the image are ever looked at.
  static Range forth(const TapTable<T>& padded, const TapTable<T>& original, Range live) {
    return reached(original.view(), both(reached(padded.view(), live), {0, original.view().in}));
  }
  static Range back(const TapTable<T>& padded, const TapTable<T>& original, Range box) {
    return needed(padded.view(), needed(original.view(), box));
  }

  Cells<S, T> cells_;
  int64_t count_, height_, width_, stride_;
  T threshold_;
  TapTable<T> padded_y_, padded_x_, original_y_, original_x_;
};

}  // namespace solo_attn::paste_masks
