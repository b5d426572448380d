// The gradient of the whole map: dV = scale * V (dG + dG^T) for each image; V and dV are [C, N], dG is [N,
// N].
//
// S = 40, C = 256: 1.31 GFLOP per image, three times that in tf32 for float32: 13 us at the 300 TFLOP/s that
// mma.sync reaches in tf32, 9 in half precision (two products in tf32), 4.5 as tf32. dG, 10 MB of float32, is
// read twice for each 128 channels, V once for each 64 cells: 82 MB from the L2 cache. dG + dG^T is added
// when it is read from shared memory. The sum over the cells is split into parts if the GPU has room for more
// blocks than an image has tiles: 250 blocks of 264. The parts' sums are stored, and added in a fixed order
// by a second kernel.
#pragma once

#include <algorithm>

#include "tile.cuh"

namespace solo_attn::grid_attention {

constexpr int kGradientThreads = 256;  // eight warps, 4 x 2
constexpr int kGradientRows = 4 * 32;  // channels of a block
constexpr int kGradientColumns = 2 * 32;
constexpr int kGradientStages = 2;
constexpr int64_t kGradientBlocks = 264;  // two for each of an H200's multiprocessors

// How the sum over the cells is split.
struct GradientPlan {
  int64_t across;
  int64_t down;
  int64_t parts;
  int64_t length;  // cells of a part

  GradientPlan(int64_t batch, int64_t channels, int64_t cells, int depth) {
    across = ceil_div<int64_t>(cells, kGradientColumns);
    down = ceil_div<int64_t>(channels, kGradientRows);
    // At least four steps per part, since its sums are written and read again.
    const int64_t steps = ceil_div<int64_t>(cells, depth), least = kPlayed ? 1 : 4;
    const int64_t wanted =
        std::max<int64_t>(1, kGradientBlocks / std::max<int64_t>(1, batch * across * down));
    length = ceil_div(steps, std::min(wanted, std::max<int64_t>(1, steps / least))) * depth;
    parts = ceil_div(cells, length);
  }
  SOLO_ATTN_HOST_DEVICE int64_t blocks() const { return across * down * parts; }
};

template <class T>
constexpr int kGradientDepth = 128 / static_cast<int>(sizeof(T));  // cells at a time

// Rows are padded by 16 bytes: reads of 8 rows x 4 columns have no bank conflict. Neither have those of 4
// rows x 8 columns of `turned`, which is padded by 32 bytes.
template <class S, class G>
struct alignas(16) GradientStage {
  using P = stored_t<S>;
  static constexpr int kDepth = kGradientDepth<accumulator_t<S>>;
  static constexpr int kLeft = kDepth + kPer16Bytes<P>, kRight = kDepth + kPer16Bytes<G>;
  static constexpr int kTurned = kGradientColumns + 2 * kPer16Bytes<G>;
  P left[kGradientRows][kLeft];
  G right[kGradientColumns][kRight];
  G turned[kDepth][kTurned];
};

// parts [parts, images, C, N] of V (dG + dG^T).
template <class S, class G, bool kAligned>
__global__ void __launch_bounds__(kGradientThreads, sizeof(S) == 8 || !kAligned ? 1 : 2)
    grid_attention_gradient_kernel(const G* grad, const stored_t<S>* features, int64_t channels,
                                   int64_t cells, GradientPlan plan, accumulator_t<S>* parts) {
  using T = accumulator_t<S>;
  using Stage = GradientStage<S, G>;
  constexpr Factors kHow = kFactors<S>;
  constexpr int kDepth = Stage::kDepth, kThreads = kGradientThreads;
  SOLO_ATTN_DYNAMIC_SHARED(Stage, stages);
  let_next_start();
  int64_t index = blockIdx.x;
  const int64_t c0 = index % plan.down * kGradientRows;
  const int64_t n0 = (index /= plan.down) % plan.across * kGradientColumns;
  const int64_t part = (index /= plan.across) % plan.parts;
  const int64_t image = index / plan.parts, images = gridDim.x / plan.blocks();
  const int64_t begin = part * plan.length, end = min(begin + plan.length, cells);
  features += image * channels * cells + c0 * cells;
  grad += image * cells * cells;
  parts += (part * images + image) * channels * cells + c0 * cells + n0;
  const int warp = threadIdx.x / kWarp, row0 = warp / 2 * 32, column0 = warp % 2 * 32;

  WarpTile<T> product;
  product.clear();
  in_stages<kGradientStages>(
      static_cast<int>(ceil_div<int64_t>(end - begin, kDepth)),
      [&](int to, int step) {
        const int64_t k = begin + static_cast<int64_t>(step) * kDepth;
        Stage& place = stages[to];
        stage<kGradientRows, kDepth, Stage::kLeft, kThreads, kAligned>(place.left[0], features + k, cells,
                                                                       channels - c0, end - k);
        stage<kGradientColumns, kDepth, Stage::kRight, kThreads, kAligned>(
            place.right[0], grad + n0 * cells + k, cells, cells - n0, end - k);
        stage<kDepth, kGradientColumns, Stage::kTurned, kThreads, kAligned>(
            place.turned[0], grad + k * cells + n0, cells, end - k, cells - n0);
      },
      [&](int at) {
        const Stage& place = stages[at];
        product.template add<kHow, kDepth>(
            [&](int row, int k) { return static_cast<T>(place.left[row0 + row][k]); },
            [&](int k, int column) {
              return static_cast<T>(place.right[column0 + column][k]) +
                     static_cast<T>(place.turned[k][column0 + column]);
            });
      });
  product.template each<kHow>([&](int row, int column, T value) {
    row += row0;
    column += column0;
    if (c0 + row < channels && n0 + column < cells) parts[row * cells + column] = value;
  });
}

// out [size] = scale * the sum of parts [count, size], added in order.
template <class S>
__global__ void __launch_bounds__(kGradientThreads)
    grid_attention_gradient_sum_kernel(const accumulator_t<S>* parts, int64_t count, int64_t size,
                                       accumulator_t<S> scale, S* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kGradientThreads + threadIdx.x;
  wait_for_previous();
  if (at >= size) return;
  accumulator_t<S> sum = 0;
#pragma unroll 4
  for (int64_t part = 0; part < count; ++part) sum += parts[part * size + at];
  out[at] = static_cast<S>(scale * sum);
}

template <class S, class G>
void symmetric_gradient(const Device& device, const char* op, const G* grad, const Tensor& features,
                        double scale, Tensor& out) {
  using T = accumulator_t<S>;
  using P = stored_t<S>;
  using Stage = GradientStage<S, G>;
  const int64_t batch = features.size(0), channels = features.size(1),
                cells = features.size(2) * features.size(2), size = features.numel();
  const GradientPlan plan(batch, channels, cells, Stage::kDepth);
  Tensor parts =
      torch::stable::new_empty(features, {plan.parts, size}, accumulator_dtype(features.scalar_type()));
  const P* from = data<P>(features);
  const bool aligned =
      cells % kPer16Bytes<P> == 0 && cells % kPer16Bytes<G> == 0 && aligned16(from) && aligned16(grad);
  with_aligned(aligned, [&](auto yes) {
    launch(device, op, grid_attention_gradient_kernel<S, G, decltype(yes)::value>,
           grid(op, batch * plan.blocks()), dim3(kGradientThreads), kGradientStages * sizeof(Stage), grad,
           from, channels, cells, plan, parts.mutable_data_ptr<T>());
  });
  launch_as(Start::early, device, op, grid_attention_gradient_sum_kernel<P>,
            grid(op, ceil_div<int64_t>(size, kGradientThreads)), dim3(kGradientThreads), 0,
            parts.const_data_ptr<T>(), plan.parts, size, scale, data<P>(out));
}

}  // namespace solo_attn::grid_attention
