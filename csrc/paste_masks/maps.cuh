// The maps at stride 4 of chosen masks, some of them at a time: a row is the mask that an index names, of
// whichever level. One launch for all levels, or two where some have the size of the maps and others are
// enlarged to it: then a block whose level is of the other kind has nothing to do.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/levels.cuh"
#include "../common/probability.cuh"
#include "paste.cuh"
#include "paste_masks_arguments.h"

namespace solo_attn::paste_masks {

constexpr int64_t kMapPixels = kPlayed ? 1 << 9 : 1 << 23;  // that are stored at a time

template <class S>
struct Level {
  CellMaps<S> maps;
  ProbabilityAxes axes;
};

// The masks of rows from `first` on: those that `index` names, or without it as many from number `first` on.
struct Rows {
  const int64_t* index;
  int64_t first;

  __device__ __forceinline__ int64_t mask(int64_t row) const {
    return index == nullptr ? first + row : index[first + row];
  }
};

namespace {

template <class S, bool kSame>
__global__ void __launch_bounds__(kWalkThreads, (kProbabilityBlocks<S, kSame>))
    paste_masks_maps_kernel(const __grid_constant__ LevelTable<Level<S>> levels, WalkPlan plan, Rows rows,
                            accumulator_t<S>* out) {
  using T = accumulator_t<S>;
  constexpr int kColumns = kProbabilityColumns<S, kSame>;
  SOLO_ATTN_SHARED(shared, ProbabilityShared<S>);
  WalkPlace place(plan, kColumns, blockIdx.x);
  const int64_t mask = rows.mask(place.cell);
  const bool inside = mask >= 0 && mask < levels.total();
  SOLO_ATTN_DEVICE_ASSERT(inside, "paste_masks: expected index within the levels' masks");
  auto cell = inside ? static_cast<uint32_t>(mask) : 0u;
  const Level<S>& level = levels.of(cell);
  if (level.axes.same() != kSame) return;
  T* to = out + (place.cell * plan.height + place.begin) * plan.width + place.x;
  place.cell = cell;
  const int left = plan.width - place.x;
  const bool whole = plan.width % kColumns == 0;
  walk_probabilities<kSame, kColumns>(level.maps, level.axes, place, shared, [&](int, const T(&p)[kColumns]) {
    if (whole) {
      Run<T, kColumns> run;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) run.at[j] = p[j];
      if (left > 0) *reinterpret_cast<Run<T, kColumns>*>(to) = run;
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (j < left) to[j] = p[j];
      }
    }
    to += plan.width;
  });
}

}  // namespace

// The arguments of one call, and how its maps are computed.
struct Call {
  const char* op = "paste_masks";
  LevelInputs levels;
  Sizes sizes;  // `size` has two numbers for each level
  std::optional<Tensor> index;
  double threshold;
  Device device;
  int64_t count;          // rows
  int64_t map, original;  // pixels

  Call(const std::vector<Tensor>& coarse, const OptionalTensors& attention,
       const std::optional<Tensor>& chosen, const Sizes& s, double threshold)
      : levels(op, coarse, attention),
        sizes(s),
        threshold(threshold),
        device(levels.first()),
        count(levels.cells()),
        map(s.out_size[0] * s.out_size[1]),
        original(s.original_size[0] * s.original_size[1]) {
    check(s.size.size() == 2 * levels.size(), op, ": expected sizes of ", levels.size(), " levels, got ",
          described(s.size));
    for (size_t k = 0; k < levels.size(); ++k) {
      const Size own{s.size[2 * k], s.size[2 * k + 1]};
      check_arguments(coarse[k], attention[k], {own, s.out_size, s.image_size, s.original_size});
    }
    for (const Size& size : {s.size, s.out_size, s.image_size, s.original_size}) check_walk(op, size);
    if (!chosen) return;
    check(chosen->dim() == 1 && chosen->scalar_type() == ScalarType::Long && same_device(*chosen, coarse[0]),
          op, ": expected index int64 of shape [N] on the device of the levels, got ", described(*chosen));
    check(chosen->size(0) == 0 || count > 0, op, ": expected index without rows, as there are no masks, got ",
          shape_of(*chosen));
    index = torch::stable::contiguous(*chosen);
    count = index->size(0);
  }
  Tensor fresh(ScalarType dtype, const Size& shape) const {
    return torch::stable::new_empty(levels.first(), shape, dtype);
  }

  // Calls each(T, maps, first, count) for at most `most` rows at a time.
  template <class F>
  void for_maps(int64_t most, const F& each) const {
    const int64_t step = std::max<int64_t>(1, std::min({most, count, kMapPixels / map}));
    if (count == 0) return;
    const int64_t height = sizes.out_size[0], width = sizes.out_size[1];
    Tensor maps = fresh(accumulator_dtype(levels.dtype()), {step, height, width});
    dispatch_float(op, levels.dtype(), [&](auto tag) {
      using S = typename decltype(tag)::type;
      using T = accumulator_t<S>;
      LevelTable<Level<S>> table;
      bool same_size = false, enlarged = false;
      for (size_t k = 0; k < levels.size(); ++k) {
        const int64_t high = sizes.size[2 * k], broad = sizes.size[2 * k + 1];
        const ProbabilityAxes axes{TapAxis::of(high, height), TapAxis::of(broad, width)};
        table.add({levels[k].template maps<S>(high, broad), axes}, levels[k].count());
        if (levels[k].count() > 0) (axes.same() ? same_size : enlarged) = true;
      }
      T* to = maps.mutable_data_ptr<T>();
      for (int64_t first = 0; first < count; first += step) {
        const int64_t some = std::min(step, count - first);
        const auto run = [&](auto same) {
          constexpr bool kSame = decltype(same)::value;
          const WalkPlan plan(some, height, width, kProbabilityColumns<S, kSame>);
          launch(device, op, paste_masks_maps_kernel<S, kSame>, walk_grid(op, plan.blocks(some)),
                 dim3(plan.threads), 0, table, plan,
                 Rows{index ? index->template const_data_ptr<int64_t>() : nullptr, first}, to);
        };
        if (same_size) run(std::true_type{});
        if (enlarged) run(std::false_type{});
        each(PasteMaps<T>{to, PasteAxis::of(height, sizes.image_size[0], sizes.original_size[0]),
                          PasteAxis::of(width, sizes.image_size[1], sizes.original_size[1])},
             first, some);
      }
    });
  }
};

}  // namespace solo_attn::paste_masks
