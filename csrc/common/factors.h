// Mask logits as the product of two factors, computed band by band on the CPU: the kernels [K, E] of an
// image's chosen cells times its features [E, P], P = h w pixels. A band is kBand pixels of every mask of the
// image; it stays in a thread's cache, so features are read once and the whole map of logits is never stored.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cells.h"
#include "check.h"
#include "describe.h"
#include "dtypes.h"
#include "gemm.h"
#include "rows.h"
#include "scratch.h"
#include "shared_table.h"

namespace solo_attn {

// Pixels of a band: a multiple of the words of bits and of the tiles of the product. A band of 200 masks is
// 400 KB.
constexpr int64_t kBand = 512;
static_assert(kBand % 64 == 0 && kBand % kTileColumns == 0);

inline void check_factors(const char* op, const Tensor& kernels, const Tensor& features, const Tensor& images,
                          const std::optional<Tensor>& attention) {
  check(kernels.dim() == 2 && kernels.size(1) > 0, op, ": expected kernels of shape [K, E] with E >= 1, got ",
        shape_of(kernels));
  const int64_t count = kernels.size(0);
  check(features.dim() == 4 && features.size(1) == kernels.size(1) && features.size(2) > 0 &&
            features.size(3) > 0,
        op, ": expected features of shape [B, E, h, w] with h, w >= 1, E = ", kernels.size(1),
        " as kernels has, got ", shape_of(features));
  check(features.scalar_type() == kernels.scalar_type() && same_device(features, kernels), op,
        ": expected features of kernels's dtype and device, ", described(kernels), ", got ",
        described(features));
  check(images.dim() == 1 && images.size(0) == count && images.scalar_type() == ScalarType::Long &&
            same_device(images, kernels),
        op, ": expected images int64 of shape [K] on ", device_name(kernels), ", K = ", count,
        " as kernels has, got ", described(images));
  if (!attention) return;
  check(attention->dim() == 3 && attention->size(0) == count && attention->size(1) > 0 &&
            attention->size(1) == attention->size(2),
        op, ": expected attention of shape [K, S, S] with S >= 1, K = ", count, " as kernels has, got ",
        shape_of(*attention));
  check(attention->scalar_type() == kernels.scalar_type() && same_device(*attention, kernels), op,
        ": expected attention of kernels's dtype and device, ", described(kernels), ", got ",
        described(*attention));
}

// The masks of one image. Mask k of them has the index place[k] in the op's input.
template <class S, class T>
struct ImageMasks {
  const T* rows;      // their kernels, packed in groups of 12: [groups, E, 12]
  const S* features;  // [E, P]
  const int64_t* place;
  int64_t count;
  int64_t depth;  // E
  int64_t pixels;
  const S* attention;  // [.., S, S] of all masks of the op, or nullptr
  Taps<T> down;        // of its upsampling
  Taps<T> across;

  // Rows of a band's logits, in whole groups.
  int64_t height() const { return tiles(count, kTileRows) * kTileRows; }
  int64_t bands() const { return tiles(pixels, kBand); }
  // Scratch memory of a thread: a panel of features, the logits of a band, two rows of attention.
  int64_t panel_room() const { return depth * kTileColumns; }
  int64_t band_room() const { return height() * kBand; }
  int64_t row_room() const { return RowPair<S, T>::size(across.in, across.out); }
};

// The op's inputs, all contiguous, and its masks grouped by image.
template <class S, class T>
class Factors {
 public:
  Factors(const char* op, const Tensor& kernels, const Tensor& features, const Tensor& images,
          const std::optional<Tensor>& attention)
      : kernels_(torch::stable::contiguous(kernels)),
        features_(torch::stable::contiguous(features)),
        attention_(attention ? torch::stable::contiguous(*attention) : kernels_),
        plain_(!attention),
        width_(features.size(3)),
        places_(features.size(0)),
        down_(plain_ ? 0 : attention_.size(1), plain_ ? 0 : features.size(2)),
        across_(plain_ ? 0 : attention_.size(1), plain_ ? 0 : width_) {
    const Tensor list = torch::stable::contiguous(images);
    const auto* image = list.const_data_ptr<int64_t>();
    const auto batch = static_cast<int64_t>(places_.size());
    for (int64_t k = 0; k < kernels.size(0); ++k) {
      check_value(image[k] >= 0 && image[k] < batch, op, ": expected images in 0..", batch - 1, ", got ",
                  image[k]);
      places_[image[k]].push_back(k);
    }
  }

  int64_t batch() const { return static_cast<int64_t>(places_.size()); }
  int64_t depth() const { return kernels_.size(1); }
  int64_t pixels() const { return features_.size(2) * width_; }
  int64_t width() const { return width_; }
  const std::vector<int64_t>& places(int64_t image) const { return places_[image]; }
  const S* kernel(int64_t place) const { return kernels_.template const_data_ptr<S>() + place * depth(); }

  // The masks of an image; `store` holds the packed kernels.
  ImageMasks<S, T> at(int64_t image, Scratch<T>& store) const {
    const std::vector<int64_t>& place = places_[image];
    const auto count = static_cast<int64_t>(place.size());
    const int64_t groups = tiles(count, kTileRows);
    store = zeroed_scratch<T>(groups * kTileRows * depth());
    for (int64_t k = 0; k < count; ++k) {
      T* out = store.get() + k / kTileRows * kTileRows * depth() + k % kTileRows;
      const S* from = kernel(place[k]);
      for (int64_t e = 0; e < depth(); ++e) out[e * kTileRows] = static_cast<T>(from[e]);
    }
    return {store.get(),
            features_.template const_data_ptr<S>() + image * depth() * pixels(),
            place.data(),
            count,
            depth(),
            pixels(),
            plain_ ? nullptr : attention_.template const_data_ptr<S>(),
            down_.view(),
            across_.view()};
  }

 private:
  Tensor kernels_, features_, attention_;
  bool plain_;
  int64_t width_;
  std::vector<std::vector<int64_t>> places_;
  SharedTable<TapTable<T>> down_, across_;
};

// Logits of the image's masks at pixels [first, first + some) of features [E, pixels]: [height(), kBand].
// Columns from `some` on are 0 up to the end of a panel and not written after it; rows after the last mask
// are 0.
template <Isa isa, class S, class T, class F>
SOLO_ATTN_INLINE void product_band(const ImageMasks<S, T>& masks, const F* features, int64_t pixels,
                                   int64_t first, int64_t some, T* panel, T* logits) {
  for (int64_t x = 0; x < some; x += kTileColumns) {
    pack_columns<isa>(features, masks.depth, pixels, first + x, panel);
    for (int64_t k = 0; k < masks.count; k += kTileRows) {
      multiply<isa>(masks.rows + k * masks.depth, panel, masks.depth, T(1), logits + k * kBand + x, kBand);
    }
  }
}

// Adds the upsampled attention of a mask to its logits of a band. `store` has row_room() elements.
template <Isa isa, class S, class T>
SOLO_ATTN_INLINE void add_attention(const ImageMasks<S, T>& masks, int64_t k, int64_t first, int64_t some,
                                    T* store, T* logits) {
  const int64_t width = masks.across.out;
  const S* map = masks.attention + masks.place[k] * masks.down.in * masks.across.in;
  for (int64_t begin = first; begin < first + some;) {
    const int64_t y = begin / width, x = begin % width, end = std::min(width, x + first + some - begin);
    RowPair<S, T> rows{map, masks.down, masks.across, store, x, end, {-1, -1}};
    const T* upper = rows.template row<isa>(masks.down.low[y]);
    const T* lower = rows.template row<isa>(masks.down.high[y]);
    const T weight = masks.down.weight[y];
    T* out = logits + (begin - first) - x;
    for (int64_t c = x; c < end; ++c) out[c] += mix(upper[c], lower[c], weight);
    begin += end - x;
  }
}

}  // namespace solo_attn
