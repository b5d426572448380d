// The attention map, [N, N] for an image's N cells: the whole forward pass of grid_attention, the first half
// of attention_residual's.
//
// S = 40, C = 256, one image: 2 C N^2 = 1.31 GFLOP, of which half is computed and mirrored. Float32 takes
// three products in tf32: 2.0 GFLOP at the 300 TFLOP/s that mma.sync reaches in tf32 are 6.5 us; as tf32 2
// us, in half precision 1. 1.6 MB are read and 10.2 MB written, which stay in the L2 cache. 325 blocks, three
// to an SM.
#pragma once

#include "grid_attention.h"
#include "tile.cuh"

namespace solo_attn::grid_attention {

constexpr int kMapThreads = 128;  // four warps, 2 x 2
constexpr int kMapBlock = 2 * 32;
constexpr int kMapStages = 4;

// Channels at a time, 64 cells of each: 4 KB.
template <class S>
constexpr int kMapDepth = 64 / static_cast<int>(sizeof(S));

// The tiles of rows [first, first + rows) of the map.
struct MapRows {
  int64_t first;
  int64_t rows;
  int64_t blocks;  // of one image
  bool mirrored;   // all rows, and the blocks on and above the diagonal
};

inline MapRows map_rows(int64_t cells, int64_t first, int64_t rows) {
  const int64_t across = ceil_div<int64_t>(cells, kMapBlock);
  const bool mirrored = rows == cells;
  return {first, rows, mirrored ? block_pairs(across) : ceil_div<int64_t>(rows, kMapBlock) * across,
          mirrored};
}

template <class S>
union MapShared {
  using P = stored_t<S>;
  static constexpr int kStride = kMapBlock + kPadding<P>;
  struct alignas(16) Stage {
    P left[kMapDepth<S>][kStride];
    P right[kMapDepth<S>][kStride];
  } stages[kMapStages];
  accumulator_t<S> tile[kMapBlock][kMapBlock + 1];
};

// out [images, rows, N] = scale * V^T V of features [images, C, N].
template <class S, class O, bool kAligned>
__global__ void __launch_bounds__(kMapThreads, sizeof(S) == 8 ? 2 : 3)
    grid_attention_map_kernel(const stored_t<S>* features, int64_t channels, int64_t cells, MapRows plan,
                              accumulator_t<S> scale, O* out) {
  using T = accumulator_t<S>;
  using Shared = MapShared<S>;
  constexpr int kDepth = kMapDepth<S>, kStride = Shared::kStride;
  constexpr Factors kHow = kFactors<S>;
  SOLO_ATTN_SHARED(shared, Shared);
  let_next_start();
  const int64_t image = blockIdx.x / plan.blocks, index = blockIdx.x % plan.blocks;
  const int64_t across = ceil_div<int64_t>(cells, kMapBlock);
  const BlockPair pair = plan.mirrored ? block_pair(index) : BlockPair{index / across, index % across};
  const int64_t i = plan.first + pair.i * kMapBlock, j = pair.j * kMapBlock;
  features += image * channels * cells;
  const int warp = threadIdx.x / kWarp, row0 = warp / 2 * 32, column0 = warp % 2 * 32;

  WarpTile<T> product;
  product.clear();
  in_stages<kMapStages>(
      static_cast<int>(ceil_div<int64_t>(channels, kDepth)),
      [&](int to, int part) {
        const int64_t c = static_cast<int64_t>(part) * kDepth;
        const auto* from = features + c * cells;
        auto& place = shared.stages[to];
        stage<kDepth, kMapBlock, kStride, kMapThreads, kAligned>(place.left[0], from + i, cells, channels - c,
                                                                 cells - i);
        stage<kDepth, kMapBlock, kStride, kMapThreads, kAligned>(place.right[0], from + j, cells,
                                                                 channels - c, cells - j);
      },
      [&](int at) {
        const auto& place = shared.stages[at];
        if constexpr (kHow == Factors::split) {
          product.template add_half<S, kDepth, kStride, kStride>(place.left[0] + row0,
                                                                 place.right[0] + column0);
        } else {
          product.template add<kHow, kDepth>(
              [&](int row, int k) { return place.left[k][row0 + row]; },
              [&](int k, int column) { return place.right[k][column0 + column]; });
        }
      });
  __syncthreads();
  product.template each<kHow>(
      [&](int row, int column, T value) { shared.tile[row0 + row][column0 + column] = scale * value; });
  __syncthreads();

  out += image * plan.rows * cells;
  const auto write = [&](int64_t top, int64_t left, int64_t bottom, const auto& value) {
    for (int e = threadIdx.x; e < kMapBlock * kMapBlock / 4; e += kMapThreads) {
      const int row = e / (kMapBlock / 4), column = e % (kMapBlock / 4) * 4;
      const int64_t some = cells - left - column;
      if (top + row >= bottom || some <= 0) continue;
      Run<O, 4> run;
      for (int k = 0; k < 4; ++k) run.at[k] = static_cast<O>(value(row, column + k));
      O* to = out + (top + row) * cells + left + column;
      if constexpr (kAligned) {
        *reinterpret_cast<Run<O, 4>*>(to) = run;
      } else {
        for (int k = 0; k < min(int64_t(4), some); ++k) to[k] = run.at[k];
      }
    }
  };
  if (plan.mirrored && i == j) {  // one half of a block on the diagonal stands for both
    write(i, i, cells, [&](int row, int column) { return shared.tile[min(row, column)][max(row, column)]; });
    return;
  }
  write(i - plan.first, j, plan.rows, [&](int row, int column) { return shared.tile[row][column]; });
  if (plan.mirrored) write(j, i, cells, [&](int row, int column) { return shared.tile[column][row]; });
}

// out [images, rows, N] of contiguous features [images, C, S, S], whose first element is at `features`.
template <class S, class O>
void map(const Device& device, const char* op, const stored_t<S>* features, int64_t images, int64_t channels,
         int64_t cells, MapRows plan, double scale, O* out) {
  const bool aligned = (cells | plan.first) % kPer16Bytes<stored_t<S>> == 0 && aligned16(features);
  with_aligned(aligned, [&](auto yes) {
    launch(device, op, grid_attention_map_kernel<S, O, decltype(yes)::value>, grid(op, images * plan.blocks),
           dim3(kMapThreads), 0, features, channels, cells, plan, scale, out);
  });
}

}  // namespace solo_attn::grid_attention
