// The dot products of all pairs of cells: map.cuh and gradient.cuh. Chosen cells: chosen.cuh.
#include <optional>

#include "../common/dtypes.h"
#include "chosen.cuh"
#include "gradient.cuh"
#include "grid_attention_arguments.h"
#include "map.cuh"

namespace solo_attn::grid_attention {
namespace {

void check_there(const char* op, const Tensor& features) {
  check_features(op, features);
  check(Device::holds(features), op, ": expected grid_features on a GPU, as another argument is, got ",
        device_name(features));
}

bool beside(const Tensor& x, const Tensor& features) {
  return Device::holds(x) && x.get_device_index() == features.get_device_index();
}

// The list in the form that the kernels read; `kept` keeps its memory alive.
Chosen chosen_of(const char* op, const Tensor& cells, const Tensor& features, Tensor& kept) {
  check_list(cells, features, beside(cells, features));
  check(cells.size(0) <= 1 << 30, op, ": expected at most 2^30 cells, got ", cells.size(0));
  check(features.size(2) <= 1 << 15, op, ": expected grid_features of at most 32768 cells a side, got ",
        features.size(2));
  kept = torch::stable::contiguous(cells);
  return {kept.const_data_ptr<int64_t>(), static_cast<int>(cells.size(0)), features.size(0),
          features.size(2) * features.size(2)};
}

Tensor grid_attention_cuda(const Tensor& grid_features, double scale, const std::optional<Tensor>& cells,
                           bool tf32) {
  constexpr const char* op = "grid_attention";
  check_there(op, grid_features);
  const Device device(grid_features);
  const int64_t batch = grid_features.size(0), channels = grid_features.size(1), side = grid_features.size(2);
  const int64_t count = side * side;
  const Tensor features = torch::stable::contiguous(grid_features);
  Tensor list = features;
  const Chosen chosen = cells ? chosen_of(op, *cells, features, list) : Chosen{};
  Tensor out = cells ? torch::stable::new_empty(features, {cells->size(0), side, side})
                     : torch::stable::new_empty(features, {batch, count, side, side});
  if (out.numel() == 0) return out;
  dispatch_product(op, features.scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using P = stored_t<S>;
    if (!cells) {
      P* to = data<P>(out);
      map<S>(device, op, data<P>(features), batch, channels, count, map_rows(count, 0, count), scale, to);
      return;
    }
    const int64_t blocks =
        ceil_div<int64_t>(chosen.count, kListed) * ceil_div<int64_t>(count, kChosenColumns);
    const P* from = data<P>(features);
    with_aligned(count % kPer16Bytes<P> == 0 && aligned16(from), [&](auto aligned) {
      launch(device, op, grid_attention_chosen_kernel<S, decltype(aligned)::value>, grid(op, blocks),
             dim3(kThreads), 0, from, chosen, channels, scale, data<P>(out));
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
    using Sum = Product<S>;
    const S *above = data<S>(upstream), *from = data<S>(features);
    const int64_t down = ceil_div<int64_t>(channels, Sum::kRows);
    Tensor picked = torch::stable::new_empty(features, {kParts, chosen.count, channels},
                                             accumulator_dtype(features.scalar_type()));
    launch(device, op, grid_attention_picked_kernel<S>,
           grid(op, ceil_div<int64_t>(chosen.count, kListed) * kParts * down), dim3(kThreads), 0, above, from,
           chosen, channels, picked.mutable_data_ptr<T>());
    launch(device, op, grid_attention_chosen_gradient_kernel<S>,
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
