// Masks of K cells: their maps at stride 4 (h x w) are upsampled to 4 h x 4 w, cropped, and resized to H x W.
//
// Bytes per mask: a map (4 h w, in the cache) and the result: H W for bool, some hundred for run lengths.
// Flops: 3 for each of h * 4 h, w * H and 4 w * H interpolations, 4 for each pixel: from 200 x 336 to 1024 x
// 2048 about 13 M for a full mask, 0.8 M vectors of 16 and their loads, 0.5 ms on one core; of most masks
// only a small box is computed. The lower bound of bool is the time to write H W bytes.
//
// All steps are in column-major order, as run lengths are: the map is transposed and upsampled in y, then in
// x; each column is compared with the threshold and packed into words of 64 pixels, in which the runs are
// found. Pixels are unpacked from the same words, transposed in blocks of 64 x 64, so both forms agree.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/bits.h"
#include "../common/cells.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/fresh.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "paste_masks.h"
#include "paste_masks_arguments.h"

namespace solo_attn::paste_masks {
namespace {

constexpr int64_t kWord = 64;

// Transposes the map at stride 4: column x is `map + x * stride`, with kSlack elements of padding after it.
template <class S, class T>
struct Transpose {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Probabilities<S, T> from, T* __restrict line, T* __restrict map,
                                   int64_t stride) {
    const Range x = from.wanted_x;
    for (int64_t y = from.wanted_y.begin; y < from.wanted_y.end; ++y) {
      const T weight = from.rows.weight[y];
      const T* __restrict above = from.template row<isa>(from.rows.low[y]);
      const T* __restrict below = from.template row<isa>(from.rows.high[y]);
      for (int64_t c = x.begin; c < x.end; ++c) line[c] = lerp(above[c], below[c], weight);
      for (int64_t c = x.begin; c < x.end; ++c) map[c * stride + y] = line[c];
    }
  }
};

// Upsamples a transposed map to the padded input and then to the original image, in y and in x.
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

template <class T>
struct ToRuns {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Paste<T> paste, T threshold, uint8_t* bytes, uint64_t* words, Runs* runs) {
    const int64_t height = paste.original_y.out, first = paste.y.begin, count = paste.y.end - first;
    for (int64_t x = paste.x.begin; x < paste.x.end; ++x) {
      paste.template column<isa>(x, threshold, bytes, words);
      if (first > 0) runs->clear(x * height);
      const int64_t base = x * height + first;
      for (int64_t i = 0; i < count; i += kWord) {
        const uint64_t word = words[i / kWord];
        uint64_t changes = word ^ (word << 1 | static_cast<uint64_t>(runs->inside()));
        if (count - i < kWord) changes &= (uint64_t(1) << (count - i)) - 1;
        for (; changes != 0; changes &= changes - 1) {
          runs->flip(base + i + popcount<isa>((changes & (0 - changes)) - 1));
        }
      }
      if (paste.y.end < height) runs->clear(x * height + paste.y.end);
    }
  }
};

// Moves bit c of word r to bit r of word c: two quadrants are swapped, then two of each quadrant, and so on.
SOLO_ATTN_INLINE void transpose64(uint64_t* __restrict words) {
  uint64_t mask = 0x00000000ffffffff;
  for (int half = 32; half != 0; half >>= 1, mask ^= mask << half) {
    for (int block = 0; block < 64; block += 2 * half) {
      for (int i = block; i < block + half; ++i) {
        const uint64_t swap = ((words[i] >> half) ^ words[i + half]) & mask;
        words[i + half] ^= swap;
        words[i] ^= swap << half;
      }
    }
  }
}

// Expands 64 bits to 64 bytes of 0 or 1.
SOLO_ATTN_INLINE void unpack64(uint64_t word, uint8_t* bytes) {
  for (int octet = 0; octet < 8; ++octet) {
    // Byte i keeps only bit i; adding 127 then sets bit 7 if it is set, without a carry into the next byte.
    uint64_t x = (word >> (8 * octet) & 255) * 0x0101010101010101 & 0x8040201008040201;
    x = (x + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101;
    std::memcpy(bytes + 8 * octet, &x, 8);
  }
}

template <class T>
struct ToPixels {
  // `words` has room for 64 columns.
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Paste<T> paste, T threshold, uint8_t* bytes, uint64_t* words, bool* mask) {
    const int64_t width = paste.original_x.out, first = paste.y.begin, count = paste.y.end - first;
    const int64_t tall = (count + kWord - 1) / kWord;
    for (int64_t x = paste.x.begin; x < paste.x.end; x += kWord) {
      const int64_t columns = std::min(kWord, paste.x.end - x);
      for (int64_t c = 0; c < columns; ++c) {
        paste.template column<isa>(x + c, threshold, bytes, words + c * tall);
      }
      for (int64_t w = 0; w < tall; ++w) {
        uint64_t block[kWord], any = 0;
        for (int64_t c = 0; c < kWord; ++c) any |= block[c] = c < columns ? words[c * tall + w] : 0;
        if (any == 0) continue;
        transpose64(block);
        const int64_t rows = std::min(kWord, count - w * kWord);
        for (int64_t r = 0; r < rows; ++r) {
          if (block[r] == 0) continue;
          uint8_t pixels[kWord];
          unpack64(block[r], pixels);
          std::memcpy(mask + (first + w * kWord + r) * width + x, pixels, columns);
        }
      }
    }
  }
};

// The tap tables of all steps from the inputs to the original image.
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

  // Calls each(k, map, box, parts) for every cell, with the box that may hold a set pixel and the number of
  // parts of its columns: of many masks each thread takes one at a time, few are each shared by all threads.
  template <class F>
  void for_each_cell(const F& each) const {
    const int64_t threads = thread_count();
    if (count_ >= 4 * threads) {
      parallel_dynamic(count_, kWorthwhile, [&](const auto& next) {
        const std::unique_ptr<T[]> map(new T[width_ * stride_]);
        for (int64_t k = next(); k >= 0; k = next()) each(k, map.get(), draw(k, map.get()), 1);
      });
      return;
    }
    const std::unique_ptr<T[]> map(new T[width_ * stride_]);
    for (int64_t k = 0; k < count_; ++k) {
      const Box box = draw(k, map.get());
      const int64_t columns = box.x.end - box.x.begin, pixels = (box.y.end - box.y.begin) * columns;
      each(k, map.get(), box, std::clamp<int64_t>(std::min(pixels / kWorthwhile, columns), 1, threads));
    }
  }

  // Calls f(i, paste, threshold, bytes, words) for each part i of a box's columns.
  template <class F>
  void for_each_part(const T* map, Box box, int64_t parts, const F& f) const {
    if (box.empty()) return;
    const int64_t height = original_y_.view().out, words = (height + kWord - 1) / kWord;
    parallel_for(parts, kWorthwhile, [&](int64_t from, int64_t to) {
      const std::unique_ptr<T[]> store(new T[Paste<T>::size(4 * height_, height)]);
      const std::unique_ptr<uint8_t[]> bytes(new uint8_t[words * kWord]);
      const std::unique_ptr<uint64_t[]> bits(new uint64_t[words * kWord]);
      for (int64_t i = from; i < to; ++i) {
        const Range x = part_of(box.x, i, parts);
        const Paste<T> paste{map,
                             stride_,
                             padded_y_.view(),
                             padded_x_.view(),
                             original_y_.view(),
                             original_x_.view(),
                             box.y,
                             x,
                             store.get(),
                             {-1, -1},
                             {-1, -1}};
        f(i, paste, threshold_, bytes.get(), bits.get());
      }
    });
  }

 private:
  // Computes the map of cell k, and returns its box.
  Box draw(int64_t k, T* map) const {
    const std::unique_ptr<T[]> store(new T[std::max(cells_.room(), width_ + 2 * height_ + kSlack)]);
    const Box box = cells_.bounds(k, store.get());
    const Range y = forth(padded_y_, original_y_, box.y), x = forth(padded_x_, original_x_, box.x);
    if (y.empty() || x.empty()) return {{0, 0}, {0, 0}};
    const Range map_y = back(padded_y_, original_y_, y), map_x = back(padded_x_, original_x_, x);
    parallel_for(map_y.end - map_y.begin, map_x.end - map_x.begin, [&](int64_t from, int64_t to) {
      const std::unique_ptr<T[]> own(new T[width_ + cells_.room()]);
      const Box band{{map_y.begin + from, map_y.begin + to}, map_x};
      call<Transpose<S, T>>(cells_.at(k, band, own.get() + width_), own.get(), map, stride_);
    });
    // Probabilities give a smaller box than the bounds of logits did.
    const T cut = threshold_ * (1 - 8 * std::numeric_limits<T>::epsilon());
    T* most_y = store.get() + height_ + kSlack;
    T* most_x = most_y + height_;
    call<Largest<T, T>>(map + map_x.begin * stride_ + map_y.begin, map_x.end - map_x.begin,
                        map_y.end - map_y.begin, stride_, most_x + map_x.begin, most_y + map_y.begin,
                        store.get());
    const auto tight = [&](const T* most, Range range) {
      while (!range.empty() && most[range.begin] <= cut) ++range.begin;
      while (!range.empty() && most[range.end - 1] <= cut) --range.end;
      return range;
    };
    return {both(y, forth(padded_y_, original_y_, tight(most_y, map_y))),
            both(x, forth(padded_x_, original_x_, tight(most_x, map_x)))};
  }

  static Range both(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

  // A range of the map in the original image, and back. The crop is the limit to original.in.
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

Tensor paste_masks_cpu(const Tensor& coarse, const std::optional<Tensor>& attention, Size size, Size out_size,
                       Size image_size, Size original_size, double threshold) {
  const Sizes s{size, out_size, image_size, original_size};
  check_arguments(coarse, attention, s);
  const int64_t height = original_size[0], width = original_size[1];
  Tensor masks = fresh(coarse, {coarse.size(0), height, width}, ScalarType::Bool);
  bool* out = static_cast<bool*>(masks.mutable_data_ptr());
  dispatch_float("paste_masks", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Canvas<S, T> canvas(coarse, attention, s, threshold);
    canvas.for_each_cell([&](int64_t k, const T* map, Box box, int64_t parts) {
      bool* mask = out + k * height * width;
      parallel_for(height, width / 4, [&](int64_t from, int64_t to) {
        std::fill(mask + from * width, mask + to * width, false);
      });
      canvas.for_each_part(map, box, parts,
                           [&](int64_t, const Paste<T>& paste, T limit, uint8_t* bytes, uint64_t* words) {
                             call<ToPixels<T>>(paste, limit, bytes, words, mask);
                           });
    });
  });
  return masks;
}

std::tuple<Tensor, Tensor> paste_masks_rle_cpu(const Tensor& coarse, const std::optional<Tensor>& attention,
                                               Size size, Size out_size, Size image_size, Size original_size,
                                               double threshold) {
  const Sizes s{size, out_size, image_size, original_size};
  check_arguments(coarse, attention, s);
  const int64_t height = original_size[0], width = original_size[1];
  std::vector<std::string> texts(coarse.size(0));
  dispatch_float("paste_masks", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Canvas<S, T> canvas(coarse, attention, s, threshold);
    canvas.for_each_cell([&](int64_t k, const T* map, Box box, int64_t parts) {
      std::vector<Runs> found(parts);
      canvas.for_each_part(map, box, parts,
                           [&](int64_t i, const Paste<T>& paste, T limit, uint8_t* bytes, uint64_t* words) {
                             call<ToRuns<T>>(paste, limit, bytes, words, &found[i]);
                           });
      Runs runs;
      for (int64_t i = 0; i < parts; ++i) runs.append(found[i], part_of(box.x, i, parts).begin * height);
      if (box.x.end < width) runs.clear(box.x.end * height);
      texts[k] = runs.finish(height * width);
    });
  });
  return joined(texts);
}

}  // namespace
}  // namespace solo_attn::paste_masks

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("paste_masks", TORCH_BOX(&solo_attn::paste_masks::paste_masks_cpu));
  m.impl("paste_masks_rle", TORCH_BOX(&solo_attn::paste_masks::paste_masks_rle_cpu));
}
