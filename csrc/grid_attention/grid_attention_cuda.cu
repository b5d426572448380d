// The dot products of every pair of cells.
//
// S = 40, C = 256, one image: 2 C N^2 = 1.31 GFLOP, of which half is done, the rest being its mirror
// image. 1.6 MB (float32) are read, 10.2 MB written: 2.4 us at an H200's 4.3 TB/s, when its 67 TFLOP/s of
// float32 take 10 us for the half, and its tensor cores 1 us, or 2 of tf32. So float32 is bound by the
// multiply-adds, half precision by the start of the kernel. 325 blocks an image. Chosen cells: chosen.cuh;
// the gradient: gradient.cuh.
#include <optional>

#include "../common/dtypes.h"
#include "chosen.cuh"
#include "dots.cuh"
#include "gradient.cuh"
#include "grid_attention.h"
#include "grid_attention_arguments.h"

namespace solo_attn::grid_attention {
namespace {

// Block (i, j) with i <= j of the full map, and its mirror image. Both are written from shared memory, in
// rows.
template <class S, bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocksAnSm<S>)
    grid_attention_fwd_kernel(Vectors<S> vectors, int64_t pairs, accumulator_t<S> scale, S* out) {
  constexpr int kBlock = 64;
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(rows, int[kBlock]);
  SOLO_ATTN_SHARED(tile, T[kBlock][kBlock + 1]);
  const int cells = vectors.cells;
  const int64_t b = blockIdx.x / pairs;
  const BlockPair pair = block_pair(blockIdx.x % pairs);
  const int i = static_cast<int>(pair.i) * kBlock, j = static_cast<int>(pair.j) * kBlock;
  if (threadIdx.x < kBlock) rows[threadIdx.x] = min(i + static_cast<int>(threadIdx.x), cells - 1);
  __syncthreads();
  Dots<S, kBlock, kAligned> dots;
  dots.run(vectors, b, rows, j);
  dots.each([&](int row, int column, T value) { tile[row][column] = scale * value; });
  __syncthreads();
  out += b * cells * cells;
  const auto write = [&](int first_row, int first_column, const auto& value) {
    for (int e = threadIdx.x; e < kBlock * kBlock / 4; e += kThreads) {
      const int row = e / (kBlock / 4), column = e % (kBlock / 4) * 4, left = cells - first_column - column;
      if (first_row + row >= cells || left <= 0) continue;
      Run<S, 4> run;
      for (int k = 0; k < 4; ++k) run.at[k] = static_cast<S>(value(row, column + k));
      S* to = out + static_cast<int64_t>(first_row + row) * cells + first_column + column;
      if constexpr (kAligned) {
        store_once(to, run);
      } else {
        for (int k = 0; k < min(4, left); ++k) to[k] = run.at[k];
      }
    }
  };
  if (i == j) {  // one half of a block on the diagonal stands for both
    write(i, i, [&](int row, int column) { return tile[min(row, column)][max(row, column)]; });
  } else {
    write(i, j, [&](int row, int column) { return tile[row][column]; });
    write(j, i, [&](int row, int column) { return tile[column][row]; });
  }
}

template <class F>
void with_aligned(bool aligned, const F& f) {
  if (aligned) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

void check_there(const char* op, const Tensor& features) {
  check_features(op, features);
  check(Device::holds(features), op, ": expected grid_features on a GPU, as another argument is, got ",
        device_name(features));
}

bool beside(const Tensor& x, const Tensor& features) {
  return Device::holds(x) && x.get_device_index() == features.get_device_index();
}

// The list as the kernels want it; `kept` keeps its memory alive.
Chosen chosen_of(const char* op, const Tensor& cells, const Tensor& features, Tensor& kept) {
  check_list(cells, features, beside(cells, features));
  check(cells.size(0) <= 1 << 30, op, ": expected at most 2^30 cells, got ", cells.size(0));
  kept = torch::stable::contiguous(cells);
  return {kept.const_data_ptr<int64_t>(), static_cast<int>(cells.size(0)), features.size(0),
          features.size(2) * features.size(2)};
}

Tensor grid_attention_cuda(const Tensor& grid_features, double scale, const std::optional<Tensor>& cells,
                           bool tf32) {
  constexpr const char* op = "grid_attention";
  check_there(op, grid_features);
  const Device device(grid_features);
  const int64_t batch = grid_features.size(0), side = grid_features.size(2), count = side * side;
  const Tensor features = torch::stable::contiguous(grid_features);
  Tensor list = features;
  const Chosen chosen = cells ? chosen_of(op, *cells, features, list) : Chosen{};
  Tensor out = cells ? torch::stable::new_empty(features, {cells->size(0), side, side})
                     : torch::stable::new_empty(features, {batch, count, side, side});
  if (out.numel() == 0) return out;
  dispatch_product(op, features.scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Prepared<S> prepared = prepare<S>(device, op, features);
    S* to = data<S>(out);
    with_aligned(prepared.aligned, [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      if (cells) {
        const int64_t blocks = ceil_div<int64_t>(chosen.count, kListed) * ceil_div<int64_t>(count, 128);
        constexpr bool kFour = kAligned || kTensorCores<S>;
        launch(device, op, chosen_fwd_kernel<S, kFour>, grid(op, blocks), dim3(kThreads), 0, prepared.vectors,
               chosen, scale, to);
      } else {
        const int64_t pairs = block_pairs(ceil_div<int64_t>(count, 64));
        launch(device, op, grid_attention_fwd_kernel<S, kAligned>, grid(op, batch * pairs), dim3(kThreads), 0,
               prepared.vectors, pairs, scale, to);
      }
    });
  });
  return out;
}

Tensor grid_attention_bwd_cuda(const Tensor& grad, const Tensor& grid_features, double scale,
                               const std::optional<Tensor>& cells, bool tf32) {
  constexpr const char* op = "grid_attention_bwd";
  check_there(op, grid_features);
  const Device device(grid_features);
  const int64_t batch = grid_features.size(0), channels = grid_features.size(1), side = grid_features.size(2);
  const int64_t count = side * side;
  const Tensor features = torch::stable::contiguous(grid_features);
  Tensor list = features;
  const Chosen chosen = cells ? chosen_of(op, *cells, features, list) : Chosen{};
  check_grad(grad, grid_features, cells, beside(grad, grid_features));
  const Tensor upstream = torch::stable::contiguous(grad);
  Tensor out = torch::stable::new_empty(features, features.sizes());
  if (out.numel() == 0) return out;
  dispatch_product(op, features.scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    if (!cells) {
      symmetric_gradient<S>(device, op, data<stored_t<S>>(upstream), features, scale, out);
      return;
    }
    using Sum = Product<S, false>;
    const S *above = data<S>(upstream), *from = data<S>(features);
    const int64_t down = ceil_div<int64_t>(channels, Sum::kRows);
    Tensor picked = torch::stable::new_empty(features, {kParts, chosen.count, channels},
                                             accumulator_dtype(features.scalar_type()));
    launch(device, op, picked_kernel<S>, grid(op, ceil_div<int64_t>(chosen.count, kListed) * kParts * down),
           dim3(kThreads), 0, above, from, chosen, channels, picked.mutable_data_ptr<T>());
    launch(device, op, chosen_gradient_kernel<S>,
           grid(op, batch * ceil_div<int64_t>(count, Sum::kColumns) * down), dim3(kThreads), 0, above, from,
           picked.const_data_ptr<T>(), chosen, channels, scale, data<S>(out));
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::grid_attention

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("grid_attention", TORCH_BOX(&solo_attn::grid_attention::grid_attention_cuda));
  m.impl("grid_attention_bwd", TORCH_BOX(&solo_attn::grid_attention::grid_attention_bwd_cuda));
}
