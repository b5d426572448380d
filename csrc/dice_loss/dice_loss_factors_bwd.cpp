// The gradients of dice_loss_factors with respect to both factors and the attention.
//
// 60 masks of 200 x 336, E = 256: three products of 2.1 GFLOP (the logits once more, and the gradient of each
// factor), 39 ms at 32 multiply-adds a cycle and core (AVX-512) on two cores of 2.5 GHz; 69 MB of features
// are read and their gradient, as large, is written, which costs page faults where its memory is new.
//
// The gradient of the logits exists for one band of pixels (factors.h), from which the gradients of both
// factors are accumulated at once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/factors.h"
#include "../common/lanes.h"
#include "../common/parallel.h"
#include "dice_loss.h"
#include "dice_loss_arguments.h"

namespace solo_attn::dice_loss {
namespace {

// Groups of bands: bands of a group are summed one after another, and the groups' sums are added in order, so
// that results do not depend on the number of threads. There are fewer groups where many masks would need
// more memory.
constexpr int64_t kGroups = 32;
constexpr int64_t kSums = 1 << 24;

// Tile of dot products: 4 rows of one matrix and 6 of the other keep 24 sums in AVX-512 registers.
template <Isa isa, class T>
struct Dots {
  static constexpr bool kWide = isa == Isa::avx512 && sizeof(T) == 4;
  static constexpr int64_t kRows = kWide ? 4 : 2, kColumns = kWide ? 6 : 3;
};
constexpr int64_t kDotColumns = 6;  // both divide it
static_assert(kTileRows % 4 == 0);

// out[r, c] += sum over `count` pixels of a[r, x] b[c, x]; rows of both are kBand elements apart.
template <Isa isa, class T>
SOLO_ATTN_INLINE void add_dots(const T* a, const T* b, int64_t count, T* out, int64_t stride) {
  using D = Dots<isa, T>;
  Lanes<T> sum[D::kRows][D::kColumns] = {};
  for (int64_t x = 0; x < count; x += kSumLanes) {
    Lanes<T> right[D::kColumns];
#pragma GCC unroll 6
    for (int64_t c = 0; c < D::kColumns; ++c) load(b + c * kBand + x, right[c]);
#pragma GCC unroll 4
    for (int64_t r = 0; r < D::kRows; ++r) {
      Lanes<T> left;
      load(a + r * kBand + x, left);
#pragma GCC unroll 6
      for (int64_t c = 0; c < D::kColumns; ++c) sum[r][c] += left * right[c];
    }
  }
#pragma GCC unroll 4
  for (int64_t r = 0; r < D::kRows; ++r) {
#pragma GCC unroll 6
    for (int64_t c = 0; c < D::kColumns; ++c) out[r * stride + c] += sum_of<T>(sum[r][c]);
  }
}

// Where the gradients of an image's masks are written; nullptr: not needed.
template <class S, class T>
struct Gradients {
  T* kernels;       // of a group of bands, sums: [height, columns]
  S* features;      // [E, P]
  T* attention;     // of a group of bands, sums: [count, S, S]
  int64_t columns;  // E, whole tiles of dots
  const T* turned;  // kernels packed as the left factor of the features' gradient: [ceil(E / 12), count, 12]
};

template <class S, class T>
struct Backward {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(ImageMasks<S, T> masks, const uint8_t* targets, const Slope<T>* slopes,
                                   Gradients<S, T> to, int64_t first, T* panel, T* logits, T* store,
                                   T* features) {
    const int64_t some = std::min(kBand, masks.pixels - first);
    const int64_t last = tiles(some, kTileColumns) * kTileColumns;
    for (int64_t e = 0; e < masks.depth; ++e) {
      T* line = features + e * kBand;
      widen<isa>(masks.features + e * masks.pixels + first, some, line);
      for (int64_t x = some; x < last; ++x) line[x] = 0;
    }
    product_band<isa>(masks, features, kBand, 0, some, panel, logits);
    for (int64_t k = 0; k < masks.count; ++k) {
      T* __restrict slope = logits + k * kBand;
      if (masks.attention != nullptr) add_attention<isa>(masks, k, first, some, store, slope);
      const uint8_t* __restrict truth = targets + masks.place[k] * masks.pixels + first;
      const Slope<T> of = slopes[k];
      for (int64_t x = 0; x < some; ++x) slope[x] = of(sigmoid(slope[x]), truth[x] != 0);
      for (int64_t x = some; x < last; ++x) slope[x] = 0;
      if (to.attention != nullptr) {
        scatter(masks, first, some, slope, store, to.attention + k * masks.down.in * masks.across.in);
      }
    }
    // Rows after the last mask are 0 because the product's are.
    if (to.kernels != nullptr) {
      using D = Dots<isa, T>;
      for (int64_t e = 0; e < to.columns; e += D::kColumns) {
        for (int64_t k = 0; k < masks.count; k += D::kRows) {
          add_dots<isa>(logits + k * kBand, features + e * kBand, last, to.kernels + k * to.columns + e,
                        to.columns);
        }
      }
    }
    if (to.features == nullptr) return;
    T tile[kTileRows * kTileColumns];
    for (int64_t x = 0; x < some; x += kTileColumns) {
      const int64_t wide = std::min(kTileColumns, some - x);
      pack_columns<isa>(logits, masks.count, kBand, x, panel);
      for (int64_t e = 0; e < masks.depth; e += kTileRows) {
        multiply<isa>(to.turned + e * masks.count, panel, masks.count, T(1), tile, kTileColumns);
        const int64_t high = std::min(kTileRows, masks.depth - e);
        for (int64_t r = 0; r < high; ++r) {
          narrow<isa>(tile + r * kTileColumns, wide, to.features + (e + r) * masks.pixels + first + x);
        }
      }
    }
  }

  // The adjoint of add_attention: adds each row of pixels to the two rows of the map that it was interpolated
  // from.
  static SOLO_ATTN_INLINE void scatter(const ImageMasks<S, T>& masks, int64_t first, int64_t some,
                                       const T* slope, T* line, T* map) {
    const int64_t width = masks.across.out, side = masks.across.in;
    for (int64_t begin = first; begin < first + some;) {
      const int64_t y = begin / width, x = begin % width, end = std::min(width, x + first + some - begin);
      const T* from = slope + (begin - first) - x;
      for (int64_t i = 0; i < side; ++i) line[i] = 0;
      for (int64_t c = x; c < end; ++c) {
        const T weight = masks.across.weight[c];
        line[masks.across.low[c]] += (1 - weight) * from[c];
        line[masks.across.high[c]] += weight * from[c];
      }
      const T weight = masks.down.weight[y];
      T* low = map + masks.down.low[y] * side;
      for (int64_t i = 0; i < side; ++i) low[i] += (1 - weight) * line[i];
      T* high = map + masks.down.high[y] * side;
      for (int64_t i = 0; i < side; ++i) high[i] += weight * line[i];
      begin += end - x;
    }
  }
};

// [ceil(E / 12), count, 12] of the kernels of an image's masks.
template <class S, class T>
Scratch<T> turned_kernels(const Factors<S, T>& factors, const ImageMasks<S, T>& masks) {
  Scratch<T> out = zeroed_scratch<T>(tiles(masks.depth, kTileRows) * kTileRows * masks.count);
  for (int64_t k = 0; k < masks.count; ++k) {
    const S* from = factors.kernel(masks.place[k]);
    for (int64_t e = 0; e < masks.depth; ++e) {
      const int64_t tile = e / kTileRows * masks.count + k;
      out[tile * kTileRows + e % kTileRows] = static_cast<T>(from[e]);
    }
  }
  return out;
}

// Adds up the sums of the groups, in order.
template <class S, class T>
void add_groups(const T* parts, int64_t groups, int64_t stride, int64_t count, S* out) {
  for (int64_t i = 0; i < count; ++i) {
    T sum = 0;
    for (int64_t g = 0; g < groups; ++g) sum += parts[g * stride + i];
    out[i] = static_cast<S>(sum);
  }
}

// The gradients of one image's masks; nullptr: not needed.
template <class S, class T>
void image_gradients(const Factors<S, T>& factors, int64_t image, const uint8_t* truth, const T* grad,
                     const T* sums, S* to_kernels, S* to_features, S* to_attention) {
  Scratch<T> packed;
  const ImageMasks<S, T> masks = factors.at(image, packed);
  const int64_t side = masks.down.in, area = side * side, depth = masks.depth;
  if (masks.count == 0) {
    if (to_features != nullptr) std::fill_n(to_features, depth * masks.pixels, S(0));
    return;
  }
  std::vector<Slope<T>> slopes;
  for (int64_t k = 0; k < masks.count; ++k) {
    const int64_t place = masks.place[k];
    slopes.push_back(Slope<T>::of(grad[place], sums[2 * place], sums[2 * place + 1]));
  }
  const Scratch<T> turned = to_features == nullptr ? nullptr : turned_kernels(factors, masks);
  const int64_t columns = tiles(depth, kDotColumns) * kDotColumns;
  const int64_t kernel_part = to_kernels == nullptr ? 0 : masks.height() * columns;
  const int64_t attention_part = to_attention == nullptr ? 0 : masks.count * area;
  const int64_t part = std::max<int64_t>(kernel_part + attention_part, 1), bands = masks.bands();
  const int64_t groups = std::clamp<int64_t>(kSums / part, 1, std::min(bands, kGroups));
  const int64_t each = tiles(bands, groups);
  const auto parts = zeroed_scratch<T>(groups * (kernel_part + attention_part));
  T* more = parts.get() + groups * kernel_part;
  parallel_for(groups, each * masks.count * depth * kBand / 20, [&](int64_t from, int64_t to) {
    const int64_t panel = std::max(depth, masks.count) * kTileColumns;
    const int64_t row = masks.row_room();
    const auto store = zeroed_scratch<T>(panel + masks.band_room() + row + columns * kBand);
    T* logits = store.get() + panel;
    for (int64_t g = from; g < to; ++g) {
      const Gradients<S, T> out{to_kernels == nullptr ? nullptr : parts.get() + g * kernel_part, to_features,
                                to_attention == nullptr ? nullptr : more + g * attention_part, columns,
                                turned.get()};
      for (int64_t band = g * each; band < std::min((g + 1) * each, bands); ++band) {
        call<Backward<S, T>>(masks, truth, static_cast<const Slope<T>*>(slopes.data()), out, band * kBand,
                             store.get(), logits, logits + masks.band_room(),
                             logits + masks.band_room() + row);
      }
    }
  });
  for (int64_t k = 0; k < masks.count; ++k) {
    const int64_t place = masks.place[k];
    if (to_kernels != nullptr) {
      add_groups(parts.get() + k * columns, groups, kernel_part, depth, to_kernels + place * depth);
    }
    if (to_attention != nullptr) {
      add_groups(more + k * area, groups, attention_part, area, to_attention + place * area);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> dice_loss_factors_bwd_cpu(const Tensor& grad, const Tensor& kernels,
                                                             const Tensor& features, const Tensor& images,
                                                             const std::optional<Tensor>& attention,
                                                             const Tensor& targets, const Tensor& sums,
                                                             bool kernels_wanted, bool features_wanted,
                                                             bool attention_wanted) {
  check_factors("dice_loss", kernels, features, images, attention);
  check_targets(targets, kernels, features);
  check_upstream(grad, sums, kernels, kernels.size(0));
  const int64_t count = kernels.size(0), depth = kernels.size(1);
  const int64_t batch = features_wanted ? features.size(0) : 0;
  const int64_t side = attention && attention_wanted ? attention->size(1) : 0;
  Tensor to_kernels = torch::stable::new_empty(kernels, {kernels_wanted ? count : 0, depth});
  Tensor to_features = torch::stable::new_empty(kernels, {batch, depth, features.size(2), features.size(3)});
  Tensor to_attention = torch::stable::new_empty(kernels, {count, side, side});
  const Tensor truth = torch::stable::contiguous(targets);
  const Tensor upstream = torch::stable::contiguous(grad), kept = torch::stable::contiguous(sums);
  dispatch_float("dice_loss", kernels.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Factors<S, T> factors("dice_loss", kernels, features, images, attention);
    for (int64_t image = 0; image < factors.batch(); ++image) {
      image_gradients(
          factors, image, static_cast<const uint8_t*>(truth.const_data_ptr()), upstream.const_data_ptr<T>(),
          kept.const_data_ptr<T>(), kernels_wanted ? to_kernels.mutable_data_ptr<S>() : nullptr,
          features_wanted ? to_features.mutable_data_ptr<S>() + image * depth * factors.pixels() : nullptr,
          side > 0 ? to_attention.mutable_data_ptr<S>() : nullptr);
    }
  });
  return {to_kernels, to_features, to_attention};
}

}  // namespace
}  // namespace solo_attn::dice_loss

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("dice_loss_factors_bwd", TORCH_BOX(&solo_attn::dice_loss::dice_loss_factors_bwd_cpu));
}
