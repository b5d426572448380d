// Masks of K cells: their maps at stride 4 (h x w) are upsampled to 4 h x 4 w, cropped, and resized to H x W.
//
// Bytes per mask: a map (4 h w, in strips that stay in the cache) and the result: H W for bool, some hundred
// for run lengths.
// Flops: 3 for each of h * 4 h, w * H and 4 w * H interpolations, 4 for each pixel: from 200 x 336 to 1024 x
// 2048 about 13 M for a full mask, 0.8 M vectors of 16 and their loads, 0.5 ms on one core; of most masks
// only a small box is computed. The lower bound of bool is the time to write H W bytes, each once.
//
// All steps are in column-major order, as run lengths are: strips of the map's columns are transposed and
// upsampled in y, then in x; each column is compared with the threshold and packed into words of 64 pixels,
// in which the runs are found. Pixels are unpacked from the same words, transposed in blocks of 64 x 64, so
// both forms agree.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/bits.h"
#include "../common/cells.h"
#include "../common/clear.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/large_results.h"
#include "../common/new_pages.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "paste_masks.h"
#include "paste_masks_arguments.h"
#include "paste_masks_canvas.h"

namespace solo_attn::paste_masks {
namespace {

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

// Writes the pixels of columns `own`: those in the box of `paste` as they are, the others false. `blank`: all
// are false already.
template <class T>
struct ToPixels {
  // `words` has room for 64 columns.
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Paste<T> paste, Range own, T threshold, bool blank, bool past_cache,
                                   uint8_t* bytes, uint64_t* words, bool* mask) {
    const int64_t height = paste.original_y.out, width = paste.original_x.out;
    if (!blank) {
      clear_rows(mask, width, {0, paste.y.begin}, own, past_cache);
      clear_rows(mask, width, paste.y, {own.begin, paste.x.begin}, past_cache);
      clear_rows(mask, width, paste.y, {paste.x.end, own.end}, past_cache);
      clear_rows(mask, width, {paste.y.end, height}, own, past_cache);
    }
    const int64_t first = paste.y.begin, count = paste.y.end - first;
    const int64_t tall = (count + kWord - 1) / kWord;
    for (int64_t x = paste.x.begin; x < paste.x.end; x += kWord) {
      const int64_t columns = std::min(kWord, paste.x.end - x);
      for (int64_t c = 0; c < columns; ++c) {
        paste.template column<isa>(x + c, threshold, bytes, words + c * tall);
      }
      for (int64_t w = 0; w < tall; ++w) {
        uint64_t block[kWord], any = 0;
        for (int64_t c = 0; c < kWord; ++c) any |= block[c] = c < columns ? words[c * tall + w] : 0;
        if (any == 0 && blank) continue;
        if (any != 0) transpose64(block);
        const int64_t rows = std::min(kWord, count - w * kWord);
        for (int64_t r = 0; r < rows; ++r) {
          bool* to = mask + (first + w * kWord + r) * width + x;
          if (columns == kWord) {
            unpack64<isa>(block[r], reinterpret_cast<uint8_t*>(to));
          } else {
            uint8_t pixels[kWord];
            unpack64<isa>(block[r], pixels);
            std::memcpy(to, pixels, columns);
          }
        }
      }
    }
    if (past_cache) publish();
  }

 private:
  static void clear_rows(bool* mask, int64_t width, Range y, Range x, bool past_cache) {
    const int64_t columns = x.end - x.begin, rows = y.end - y.begin;
    if (columns == width) return clear(mask + y.begin * width, rows * width, past_cache);
    if (columns == 0) return;
    for (int64_t i = y.begin; i < y.end; ++i) clear(mask + i * width + x.begin, columns, past_cache);
  }
};

struct Pixels {
  static constexpr int64_t kColumns = kWord;

  int64_t height, width;
  bool* out;
  bool blank;       // all are false already
  bool past_cache;  // see clear()
  NewPages* pages;

  // All threads clear the result of a few cells: the box of one of them may be small.
  void clear_all(int64_t count) {
    parallel_for(count * height, width / 16, [&](int64_t begin, int64_t end) {
      pages->reach(out + begin * width, (end - begin) * width);
      clear(out + begin * width, (end - begin) * width, past_cache);
      if (past_cache) publish();
    });
    blank = true;
  }

  void begin(int64_t, int64_t) const {}
  template <class T>
  void add(int64_t k, int64_t, Range columns, const Paste<T>& paste, T threshold, uint8_t* bytes,
           uint64_t* words) const {
    bool* mask = out + k * height * width;
    const Range rows = blank ? paste.y : Range{0, height};
    pages->reach(mask + rows.begin * width, (rows.end - rows.begin) * width);
    call<ToPixels<T>>(paste, columns, threshold, blank, past_cache, bytes, words, mask);
  }
  void end(int64_t) const {}
};

struct Texts {
  static constexpr int64_t kColumns = 1;

  struct Strip {
    int64_t begin;  // its first column
    Runs runs;
  };

  int64_t height, width;
  std::vector<std::string> texts;
  std::vector<std::vector<Strip>> found;  // of each cell

  Texts(int64_t count, int64_t height_in, int64_t width_in)
      : height(height_in), width(width_in), texts(count), found(count) {}

  void begin(int64_t k, int64_t strips) { found[k].resize(strips); }
  template <class T>
  void add(int64_t k, int64_t i, Range columns, const Paste<T>& paste, T threshold, uint8_t* bytes,
           uint64_t* words) {
    Runs runs;  // not among those of other threads, in the same line of memory
    call<ToRuns<T>>(paste, threshold, bytes, words, &runs);
    if (paste.x.end < columns.end) runs.clear(paste.x.end * height);
    found[k][i] = {columns.begin, std::move(runs)};
  }
  void end(int64_t k) {
    Runs runs;
    for (const Strip& strip : found[k]) runs.append(strip.runs, strip.begin * height);
    texts[k] = runs.finish(height * width);
    found[k] = {};
  }
};

Tensor paste_masks_cpu(const Tensor& coarse, const std::optional<Tensor>& attention, Size size, Size out_size,
                       Size image_size, Size original_size, double threshold) {
  const Sizes s{size, out_size, image_size, original_size};
  check_arguments(coarse, attention, s);
  const int64_t height = original_size[0], width = original_size[1];
  bool blank = false;
  Tensor masks = new_result(coarse, {coarse.size(0), height, width}, ScalarType::Bool, &blank);
  NewPages pages(masks.mutable_data_ptr(), bytes_of(masks));
  dispatch_float("paste_masks", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    Pixels pixels{
        height, width, static_cast<bool*>(masks.mutable_data_ptr()), blank, bytes_of(masks) >= kPastCache,
        &pages};
    const Canvas<S, accumulator_t<S>> canvas(coarse, attention, s, threshold);
    if (!blank && canvas.shared()) pixels.clear_all(coarse.size(0));
    canvas.run(pixels);
  });
  return masks;
}

std::tuple<Tensor, Tensor> paste_masks_rle_cpu(const Tensor& coarse, const std::optional<Tensor>& attention,
                                               Size size, Size out_size, Size image_size, Size original_size,
                                               double threshold) {
  const Sizes s{size, out_size, image_size, original_size};
  check_arguments(coarse, attention, s);
  Texts texts(coarse.size(0), original_size[0], original_size[1]);
  dispatch_float("paste_masks", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    Canvas<S, accumulator_t<S>>(coarse, attention, s, threshold).run(texts);
  });
  return joined(texts.texts);
}

}  // namespace
}  // namespace solo_attn::paste_masks

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("paste_masks", TORCH_BOX(&solo_attn::paste_masks::paste_masks_cpu));
  m.impl("paste_masks_rle", TORCH_BOX(&solo_attn::paste_masks::paste_masks_rle_cpu));
}
