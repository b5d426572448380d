// The dot products of all pairs of cells: map.cuh and gradient.cuh. Chosen cells: chosen.cuh.
#include <optional>
#include <vector>

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

// The list in the form that the kernels read, of cells in 0..limit-1; `kept` keeps its memory alive.
Chosen chosen_of(const char* op, const Tensor& cells, const Tensor& features, int64_t limit, Tensor& kept) {
  check_list(cells, features, beside(cells, features));
  check(cells.size(0) <= 1 << 30, op, ": expected at most 2^30 cells, got ", cells.size(0));
  check(limit <= 1 << 30, op, ": expected at most 2^30 cells of an image, got ", limit);
  kept = torch::stable::contiguous(cells);
  return {kept.const_data_ptr<int64_t>(), static_cast<int>(cells.size(0)), features.size(0), limit};
}

int narrow(int64_t size) {
  check(size <= 1 << 30, "grid_attention: expected at most 2^30 channels and pixels, got ", size);
  return static_cast<int>(size);
}

// The rows of chosen cells: products of the features [B, C, N] with themselves.
template <class S>
ChosenProduct<S> rows_of(const Tensor& features, const Chosen& chosen, double scale, Tensor& out) {
  using P = stored_t<S>;
  const P* from = data<P>(features);
  const int channels = narrow(features.size(1)), cells = static_cast<int>(chosen.cells);
  return {from,
          features.size(1) * cells,
          cells,
          1,
          from,
          channels,
          cells,
          nullptr,
          static_cast<accumulator_t<S>>(scale),
          chosen,
          data<P>(out),
          cells % kPer16Bytes<P> == 0 && aligned16(from)};
}

// The logits of chosen cells: products of their weights [N, C] with maps [B, C, h, w], and their biases [N].
template <class S>
ChosenProduct<S> logits_of(const Tensor& maps, const Tensor& weights, const Tensor& biases,
                           const Chosen& chosen, Tensor& out) {
  using P = stored_t<S>;
  const P* from = data<P>(maps);
  const int channels = narrow(maps.size(1)), columns = narrow(maps.size(2) * maps.size(3));
  return {data<P>(weights),
          0,
          1,
          channels,
          from,
          channels,
          columns,
          data<P>(biases),
          accumulator_t<S>(1),
          chosen,
          data<P>(out),
          columns % kPer16Bytes<P> == 0 && aligned16(from)};
}

template <class S>
void launch_products(const Device& device, const char* op, const ChosenProducts<S>& products) {
  launch(device, op, grid_attention_chosen_kernel<S>, grid(op, products.blocks()), dim3(kThreads), 0,
         products);
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
  const Chosen chosen = cells ? chosen_of(op, *cells, features, count, list) : Chosen{};
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
    ChosenProducts<S> products;
    products.add(rows_of<S>(features, chosen, scale, out));
    launch_products(device, op, products);
  });
  return out;
}

// Of each level the rows of its chosen cells or, with weights and biases, their logits; eight levels a
// launch.
std::vector<Tensor> grid_attention_levels_cuda(const std::vector<Tensor>& maps,
                                               const std::vector<Tensor>& weights,
                                               const std::vector<Tensor>& biases,
                                               const std::vector<Tensor>& cells, double scale, bool tf32) {
  constexpr const char* op = "grid_attention_levels";
  const size_t levels = maps.size();
  check(levels > 0 && cells.size() == levels && biases.size() == weights.size() &&
            (weights.empty() || weights.size() == levels),
        op, ": expected as many cells, and weights and biases if any, as maps, got ", cells.size(), ", ",
        weights.size(), ", ", biases.size(), " and ", levels);
  std::vector<Tensor> out, kept;  // the second keeps what is copied alive until all is launched
  for (size_t k = 0; k < levels; ++k) {
    check_map(op, maps[k], maps[0], beside(maps[k], maps[0]));
    if (weights.empty()) {
      check_features(op, maps[k]);
    } else {
      check_weights(op, weights[k], biases[k], maps[k],
                    beside(weights[k], maps[k]) && beside(biases[k], maps[k]));
    }
    check_list(cells[k], maps[k], beside(cells[k], maps[k]));
    out.push_back(torch::stable::new_empty(maps[k], {cells[k].size(0), maps[k].size(2), maps[k].size(3)}));
  }
  const Device device(maps[0]);
  dispatch_product(op, maps[0].scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    ChosenProducts<S> products;
    for (size_t k = 0; k < levels; ++k) {
      if (out[k].numel() == 0) continue;
      if (products.count == kProducts) {
        launch_products(device, op, products);
        products = {};
      }
      const Tensor map = torch::stable::contiguous(maps[k]);
      Tensor list = map;
      if (weights.empty()) {
        const Chosen chosen = chosen_of(op, cells[k], map, map.size(2) * map.size(3), list);
        products.add(rows_of<S>(map, chosen, scale, out[k]));
      } else {
        const Tensor left = torch::stable::contiguous(weights[k]),
                     bias = torch::stable::contiguous(biases[k]);
        const Chosen chosen = chosen_of(op, cells[k], map, left.size(0), list);
        products.add(logits_of<S>(map, left, bias, chosen, out[k]));
        kept.insert(kept.end(), {left, bias});
      }
      kept.insert(kept.end(), {map, list});
    }
    launch_products(device, op, products);
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
  const Chosen chosen = cells ? chosen_of(op, *cells, features, count, list) : Chosen{};
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
  m.impl("grid_attention_levels", TORCH_BOX(&solo_attn::grid_attention::grid_attention_levels_cuda));
  m.impl("grid_attention_bwd", TORCH_BOX(&solo_attn::grid_attention::grid_attention_bwd_cuda));
}
