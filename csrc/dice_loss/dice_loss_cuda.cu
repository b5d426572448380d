// K rows, enlarged from h x w (and S x S) to H x W, by the walk down (common/walk.cuh), and back.
//
// Bytes: 4 h w + 4 S^2 + H W of a row are read, 41 MB for 300 rows at 200 x 336, 10 us; a gradient writes the
// first two again. Flops: as upsample_add's, and a sigmoid, whose two slow instructions a quarter of the
// lanes has units for. So it computes. Going back, one pass makes both gradients (common/walk_back.cuh): the
// sigmoid of a pixel is made once, and no map is stored.
//
// Sums are added up in each thread row by row, in each block, and then, in order, over a row's blocks.
//
// The rows of all levels are in one launch, or in two where the targets of some levels are no words of four.
// One level is a table of one.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/levels.cuh"
#include "../common/reduce.h"
#include "../common/walk_back.cuh"
#include "dice_loss_arguments.h"
#include "pixels.cuh"

namespace solo_attn::dice_loss {
namespace {

constexpr int kThreads = 128;  // of the kernel that finishes

template <class S>
struct Level {
  CellMaps<S> maps;
  WalkPlan plan;
  const uint8_t* targets;
  int64_t part;  // the number of its first block among those of all levels
};

template <class S, bool kAligned>
__global__ void __launch_bounds__(kWalkThreads, sizeof(S) == 8 ? 1
                                                : kAligned     ? kWalkResident
                                                               : 2)
    dice_loss_fwd_kernel(const __grid_constant__ LevelTable<Level<S>> levels, Sums<accumulator_t<S>>* parts) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(taps, RowTaps<T>[kWalkRows]);
  SOLO_ATTN_SHARED(warps, T[kWalkThreads / kWarp]);
  uint32_t block = blockIdx.x;
  const Level<S>& level = levels.of(block);
  const WalkPlan& plan = level.plan;
  const WalkPlace place(plan, kColumns, block);
  const int left = plan.width - place.x;
  int columns[kColumns];
  own_columns(place.x, plan.width, columns);
  CellWalk<S, kColumns> cell(level.maps, place.cell, columns);
  const int64_t first = (place.cell * plan.height + place.begin) * plan.width + place.x;
  TargetRows<kAligned> rows(level.targets + first, plan.width, left, place.end - place.begin);
  Sums<T> sums{0, 0, 0};
  int pixels = 0;
  walk_band(level.maps, taps, place.begin, place.end - place.begin, [&](int, const RowTaps<T>& row) {
    T p[kColumns];
    cell.logits(row, p);
    const uint32_t word = rows.take();
    T overlap = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      p[j] = logistic(p[j]);
      if (!kAligned && j >= left) p[j] = 0;
      overlap += truth(word, j) ? p[j] : T(0);
      squares += p[j] * p[j];
    }
    sums.overlap += overlap;
    sums.squares += squares;
    pixels += __popc(word);
  });
  if (left <= 0) sums = {0, 0, 0};
  sums.overlap = block_sum(sums.overlap, warps);
  sums.squares = block_sum(sums.squares, warps);
  sums.pixels = block_sum(static_cast<T>(pixels), warps);
  if (threadIdx.x == 0) parts[level.part + block] = sums;
}

// A warp adds up a row's parts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dice_loss_sum_kernel(const __grid_constant__ LevelTable<LevelParts> levels, const Sums<T>* parts,
                         int64_t count, T eps, T* losses, T* kept) {
  const int lane = threadIdx.x % kWarp;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (cell >= count) return;
  auto index = static_cast<uint32_t>(cell);
  const LevelParts& level = levels.of(index);
  const int64_t begin = level.begin + index * level.each;
  double overlap = 0, squares = 0, pixels = 0;
  for (int64_t k = begin + lane; k < begin + level.each; k += kWarp) {
    const Sums<T> part = parts[k];
    overlap += part.overlap;
    squares += part.squares;
    pixels += part.pixels;
  }
  overlap = warp_sum(overlap);
  squares = warp_sum(squares);
  pixels = warp_sum(pixels);
  if (lane != 0) return;
  const Sums<T> all{static_cast<T>(overlap), static_cast<T>(squares), static_cast<T>(pixels)};
  const T total = all.total(eps);
  kept[2 * cell] = all.overlap;
  kept[2 * cell + 1] = total;
  losses[cell] = loss(all.overlap, total);
}

template <class S>
struct BackLevel {
  CellMaps<S> maps;
  WalkBackPlan plan;
  const uint8_t* targets;
  int64_t cell;  // the number of its first one among those of all levels
  CellGradients<S> to;
};

template <class S, bool kAligned>
__global__ void __launch_bounds__(kWalkThreads, sizeof(S) == 8 || !kAligned ? 1 : 2)
    dice_loss_bwd_kernel(const __grid_constant__ LevelTable<BackLevel<S>> levels,
                         const accumulator_t<S>* grads, const accumulator_t<S>* sums) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(taps, RowTaps<T>[kWalkRows]);
  SOLO_ATTN_DYNAMIC_SHARED(T, memory);
  uint32_t block = blockIdx.x;
  const BackLevel<S>& level = levels.of(block);
  const CellMaps<S>& maps = level.maps;
  const WalkBackPlan& plan = level.plan;
  const auto bands = static_cast<unsigned>(plan.bands);
  const uint32_t cell = block / bands;
  const int64_t row = level.cell + cell;
  const int band = static_cast<int>(block % bands), width = maps.coarse_x.out;
  const auto slope = Slope<T>::of(grads[row], sums[2 * row], sums[2 * row + 1]);
  for (int x0 = 0; x0 < width; x0 += plan.columns) {
    const int x = x0 + static_cast<int>(threadIdx.x) * kColumns, left = width - x;
    int columns[kColumns];
    own_columns(x, width, columns);
    CellGradients<S> gradients = level.to;
    gradients.to_cell(maps, cell);
    walk_back<kColumns>(maps, taps, plan, band, gradients, memory, x0, min(plan.columns, width - x0),
                        [&](int begin, int end) {
                          const int64_t first =
                              (static_cast<int64_t>(cell) * maps.coarse_y.out + begin) * width + x;
                          return Slopes<S, kAligned>(
                              maps, cell, columns,
                              TargetRows<kAligned>(level.targets + first, width, left, end - begin), slope);
                        });
  }
}

// Levels of which four targets of a row are one word, and the others: f(std::true_type{}, the first), and the
// same of the second.
template <class Level>
struct ByWords {
  LevelTable<Level> words, single;

  void add(const Level& level, int64_t width, int64_t blocks) {
    const bool aligned = width % kColumns == 0 && reinterpret_cast<uintptr_t>(level.targets) % kColumns == 0;
    (aligned ? words : single).add(level, blocks);
  }
  template <class F>
  void each(const F& f) const {
    f(std::true_type{}, words);
    f(std::false_type{}, single);
  }
};

// What both passes are given, checked and contiguous.
struct Given {
  LevelInputs levels;
  std::vector<Tensor> targets;

  Given(const char* op, const std::vector<Tensor>& coarse, const OptionalTensors& attention,
        const std::vector<Tensor>& truth)
      : levels("dice_loss", coarse, attention) {
    check(truth.size() == coarse.size(), "dice_loss: expected targets of ", coarse.size(), " levels, got ",
          truth.size());
    for (size_t k = 0; k < truth.size(); ++k) {
      check_pixels(truth[k], coarse[k], "coarse_logits");
      check_walk(op, {truth[k].size(1), truth[k].size(2)});
      targets.push_back(torch::stable::contiguous(truth[k]));
    }
  }
  int64_t height(size_t level) const { return targets[level].size(1); }
  int64_t width(size_t level) const { return targets[level].size(2); }
  const uint8_t* bytes(size_t level) const {
    return static_cast<const uint8_t*>(targets[level].const_data_ptr());
  }
};

std::tuple<Tensor, Tensor> losses_of(const std::vector<Tensor>& coarse, const OptionalTensors& attention,
                                     const std::vector<Tensor>& targets, double eps) {
  constexpr const char* op = "dice_loss";
  const Given given(op, coarse, attention, targets);
  const LevelInputs& levels = given.levels;
  const Device device(levels.first());
  const int64_t count = levels.cells();
  const ScalarType wide = accumulator_dtype(levels.dtype());
  Tensor losses = torch::stable::new_empty(levels.first(), {count}, wide);
  Tensor sums = torch::stable::new_empty(levels.first(), {count, 2}, wide);
  dispatch_float(op, levels.dtype(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    ByWords<Level<S>> tables;
    LevelTable<LevelParts> rows;
    int64_t first = 0;
    for (size_t k = 0; k < levels.size(); ++k) {
      const int64_t height = given.height(k), width = given.width(k), cells = levels[k].count();
      const WalkPlan plan(count, height, width, kColumns);
      tables.add({levels[k].template maps<S>(height, width), plan, given.bytes(k), first}, width,
                 plan.blocks(cells));
      rows.add({first, plan.parts}, cells);
      first += plan.blocks(cells);
    }
    Tensor parts = torch::stable::new_empty(levels.first(), {first, 3}, wide);
    auto* part = static_cast<Sums<T>*>(parts.mutable_data_ptr());
    tables.each([&](auto aligned, const auto& table) {
      launch(device, op, dice_loss_fwd_kernel<S, decltype(aligned)::value>, walk_grid(op, table.total()),
             dim3(table.threads()), 0, table, part);
    });
    launch(device, op, dice_loss_sum_kernel<T>, walk_grid(op, ceil_div<int64_t>(count, kThreads / kWarp)),
           dim3(kThreads), 0, rows, part, count, eps, losses.mutable_data_ptr<T>(),
           sums.mutable_data_ptr<T>());
  });
  return {losses, sums};
}

using Gradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>>;  // of each level

Gradients gradients_of(const Tensor& grad, const std::vector<Tensor>& coarse,
                       const OptionalTensors& attention, const std::vector<Tensor>& targets,
                       const Tensor& sums, bool coarse_wanted, bool attention_wanted) {
  constexpr const char* op = "dice_loss_bwd";
  const Given given(op, coarse, attention, targets);
  const LevelInputs& levels = given.levels;
  const int64_t count = levels.cells();
  check_upstream(grad, sums, levels.first(), count);
  const Device device(levels.first());
  const Tensor upstream = torch::stable::contiguous(grad), kept = torch::stable::contiguous(sums);
  std::vector<Tensor> to_coarse, to_attention;
  for (size_t k = 0; k < levels.size(); ++k) {
    const Tensor& logits = levels[k].coarse();
    const int64_t cells = levels[k].count(), side = attention_wanted ? levels[k].side() : 0;
    to_coarse.push_back(torch::stable::new_empty(
        logits, {cells, coarse_wanted ? logits.size(1) : 0, coarse_wanted ? logits.size(2) : 0}));
    to_attention.push_back(torch::stable::new_empty(logits, {cells, side, side}));
  }
  const auto wants = [&](size_t k) { return to_coarse[k].numel() + to_attention[k].numel() > 0; };
  dispatch_float("dice_loss", levels.dtype(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    // All levels in blocks of as many threads: of what the widest takes, as long as every level has the
    // shared memory for it.
    const auto plan = [&](size_t k, int threads) {
      return WalkBackPlan::of<T>(count, std::max(to_coarse[k].size(1), to_attention[k].size(1)), threads,
                                 kColumns, to_coarse[k].size(2), to_attention[k].size(2));
    };
    int threads = kWarp;
    for (size_t k = 0; k < levels.size(); ++k) {
      if (wants(k)) threads = std::max(threads, WalkBackPlan::most_threads(given.width(k), kColumns));
    }
    for (size_t k = 0; k < levels.size(); ++k) threads = std::min(threads, plan(k, threads).threads);
    size_t shared = 0;
    bool turns = false;
    ByWords<BackLevel<S>> tables;
    int64_t first = 0;
    for (size_t k = 0; k < levels.size(); ++k) {
      const int64_t height = given.height(k), width = given.width(k), cells = levels[k].count();
      if (wants(k)) {
        const WalkBackPlan own = plan(k, threads);
        const CellGradients<S> to{
            to_coarse[k].numel() > 0 ? to_coarse[k].template mutable_data_ptr<S>() : nullptr,
            to_attention[k].numel() > 0 ? to_attention[k].template mutable_data_ptr<S>() : nullptr};
        shared = std::max(shared, own.shared_bytes<T>(op, to_coarse[k].size(2), to_attention[k].size(2)));
        turns |= own.turns(width);
        tables.add({levels[k].template maps<S>(height, width), own, given.bytes(k), first, to}, width,
                   cells * own.bands);
      }
      first += cells;
    }
    if (turns && !std::is_same_v<S, T>) {  // what is added in turns must not be rounded before
      std::vector<Tensor> single;
      OptionalTensors rows;
      for (size_t k = 0; k < levels.size(); ++k) {
        single.push_back(torch::stable::to(coarse[k], ScalarType::Float));
        rows.push_back(attention[k]);
        if (rows[k]) rows[k] = torch::stable::to(*rows[k], ScalarType::Float);
      }
      const auto wide = gradients_of(grad, single, rows, targets, sums, coarse_wanted, attention_wanted);
      for (size_t k = 0; k < levels.size(); ++k) {
        torch::stable::copy_(to_coarse[k], std::get<0>(wide)[k]);
        torch::stable::copy_(to_attention[k], std::get<1>(wide)[k]);
      }
      return;
    }
    tables.each([&](auto aligned, const auto& table) {
      launch(device, op, dice_loss_bwd_kernel<S, decltype(aligned)::value>, walk_grid(op, table.total()),
             dim3(threads), shared, table, upstream.template const_data_ptr<T>(),
             kept.template const_data_ptr<T>());
    });
  });
  return {to_coarse, to_attention};
}

std::tuple<Tensor, Tensor> dice_loss_cuda(const Tensor& coarse, const std::optional<Tensor>& attention,
                                          const Tensor& targets, double eps) {
  return losses_of({coarse}, {attention}, {targets}, eps);
}

std::tuple<Tensor, Tensor> dice_loss_bwd_cuda(const Tensor& grad, const Tensor& coarse,
                                              const std::optional<Tensor>& attention, const Tensor& targets,
                                              const Tensor& sums, bool coarse_wanted, bool attention_wanted) {
  const auto found =
      gradients_of(grad, {coarse}, {attention}, {targets}, sums, coarse_wanted, attention_wanted);
  return {std::get<0>(found)[0], std::get<1>(found)[0]};
}

std::tuple<Tensor, Tensor> dice_loss_levels_cuda(std::vector<Tensor> coarse, std::vector<Tensor> attention,
                                                 std::vector<Tensor> targets, double eps) {
  return losses_of(coarse, optional_levels("dice_loss", coarse, attention), targets, eps);
}

Gradients dice_loss_levels_bwd_cuda(const Tensor& grad, std::vector<Tensor> coarse,
                                    std::vector<Tensor> attention, std::vector<Tensor> targets,
                                    const Tensor& sums, bool coarse_wanted, bool attention_wanted) {
  return gradients_of(grad, coarse, optional_levels("dice_loss", coarse, attention), targets, sums,
                      coarse_wanted, attention_wanted);
}

}  // namespace
}  // namespace solo_attn::dice_loss

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("dice_loss", TORCH_BOX(&solo_attn::dice_loss::dice_loss_cuda));
  m.impl("dice_loss_bwd", TORCH_BOX(&solo_attn::dice_loss::dice_loss_bwd_cuda));
  m.impl("dice_loss_levels", TORCH_BOX(&solo_attn::dice_loss::dice_loss_levels_cuda));
  m.impl("dice_loss_levels_bwd", TORCH_BOX(&solo_attn::dice_loss::dice_loss_levels_bwd_cuda));
}
