// Dice losses of K masks from kernels [K, E] and features [B, E, h, w].
//
// 60 masks of 200 x 336, E = 256: the product of the factors is 2.1 GFLOP, 13 ms at 32 multiply-adds a cycle
// and core (AVX-512) on two cores of 2.5 GHz; 69 MB are read. A sigmoid and the sums are about 4 cycles for
// 16 pixels of a mask, where the product takes 16 E / 32 = 128.
//
// No map of logits or probabilities is stored: they exist for one band of pixels (factors.h).
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

// The sums of a band over each of the image's masks.
template <class S, class T>
struct Forward {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(ImageMasks<S, T> masks, const uint8_t* targets, int64_t first, T* panel,
                                   T* logits, T* store, Sums<T>* parts) {
    const int64_t some = std::min(kBand, masks.pixels - first), last = tiles(some, kSumLanes) * kSumLanes;
    product_band<isa>(masks, masks.features, masks.pixels, first, some, panel, logits);
    for (int64_t k = 0; k < masks.count; ++k) {
      T* __restrict p = logits + k * kBand;
      if (masks.attention != nullptr) add_attention<isa>(masks, k, first, some, store, p);
      const uint8_t* __restrict truth = targets + masks.place[k] * masks.pixels + first;
      T overlap[kBand];
      int32_t count = 0;
      for (int64_t x = 0; x < some; ++x) {
        p[x] = sigmoid(p[x]);
        overlap[x] = truth[x] != 0 ? p[x] : T(0);
        count += truth[x] != 0;
      }
      for (int64_t x = some; x < last; ++x) p[x] = overlap[x] = 0;
      Lanes<T> both = {}, square = {};
      for (int64_t x = 0; x < last; x += kSumLanes) {
        Lanes<T> value, covered;
        load(p + x, value);
        load(overlap + x, covered);
        square += value * value;
        both += covered;
      }
      parts[k] = {sum_of<T>(both), sum_of<T>(square), static_cast<T>(count)};
    }
  }
};

std::tuple<Tensor, Tensor> dice_loss_factors_cpu(const Tensor& kernels, const Tensor& features,
                                                 const Tensor& images, const std::optional<Tensor>& attention,
                                                 const Tensor& targets, double eps) {
  check_factors("dice_loss", kernels, features, images, attention);
  check_targets(targets, kernels, features);
  const int64_t count = kernels.size(0);
  const ScalarType wide = accumulator_dtype(kernels.scalar_type());
  Tensor losses = torch::stable::new_empty(kernels, {count}, wide);
  Tensor sums = torch::stable::new_empty(kernels, {count, 2}, wide);
  const Tensor truth = torch::stable::contiguous(targets);
  dispatch_float("dice_loss", kernels.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Factors<S, T> factors("dice_loss", kernels, features, images, attention);
    T* out = losses.mutable_data_ptr<T>();
    T* kept = sums.mutable_data_ptr<T>();
    for (int64_t image = 0; image < factors.batch(); ++image) {
      Scratch<T> packed;
      const ImageMasks<S, T> masks = factors.at(image, packed);
      if (masks.count == 0) continue;
      const int64_t bands = masks.bands();
      std::vector<Sums<T>> parts(bands * masks.count);
      parallel_for(bands, masks.count * masks.depth * kBand / 64, [&](int64_t from, int64_t to) {
        const auto store = scratch<T>(masks.panel_room() + masks.band_room() + masks.row_room());
        T* logits = store.get() + masks.panel_room();
        for (int64_t band = from; band < to; ++band) {
          call<Forward<S, T>>(masks, static_cast<const uint8_t*>(truth.const_data_ptr()), band * kBand,
                              store.get(), logits, logits + masks.band_room(),
                              parts.data() + band * masks.count);
        }
      });
      for (int64_t k = 0; k < masks.count; ++k) {
        Sums<double> all{0, 0, 0};
        for (int64_t band = 0; band < bands; ++band) {
          const Sums<T>& part = parts[band * masks.count + k];
          all = {all.overlap + part.overlap, all.squares + part.squares, all.pixels + part.pixels};
        }
        const int64_t place = masks.place[k];
        kept[2 * place] = static_cast<T>(all.overlap);
        kept[2 * place + 1] = static_cast<T>(all.total(eps));
        out[place] = loss(kept[2 * place], kept[2 * place + 1]);
      }
    }
  });
  return {losses, sums};
}

}  // namespace
}  // namespace solo_attn::dice_loss

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("dice_loss_factors", TORCH_BOX(&solo_attn::dice_loss::dice_loss_factors_cpu));
}
