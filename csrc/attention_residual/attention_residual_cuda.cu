// Mask logits plus the upsampled attention maps of their cells.
//
// Forward: the maps by grid_attention's kernel (grid_attention/map.cuh), in float32 if the logits are half
// precision: 10 MB per image of 40 x 40 cells, which stay in the L2 cache for stream.cuh, which adds them to
// the logits. That kernel starts while the maps are still being computed.
//
// Backward: gather.cuh, the adjoint of the upsampling, then grid_attention's gradient (gradient.cuh) of its
// result, again 10 MB.
#include <algorithm>

#include "../common/check.h"
#include "../common/dtypes.h"
#include "../grid_attention/gradient.cuh"
#include "../grid_attention/map.cuh"
#include "attention_residual.h"
#include "attention_residual_arguments.h"
#include "gather.cuh"
#include "stream.cuh"

namespace solo_attn::attention_residual {
namespace {

using grid_attention::data;
using grid_attention::dispatch_product;
using grid_attention::grid;
using grid_attention::kMapBlock;
using grid_attention::map_rows;
using grid_attention::MapRows;
using grid_attention::stored_t;
using grid_attention::symmetric_gradient;

void check_arguments(const char* what, const Tensor& logits, const Tensor& features) {
  attention_residual::check_arguments(what, logits, features,
                                      Device::holds(features) && Device::holds(logits) &&
                                          logits.get_device_index() == features.get_device_index());
  check(logits.size(2) < 1 << 27 && logits.size(3) < 1 << 27, "attention_residual: expected ", what,
        " of fewer than 2^27 rows and columns, got ", shape_of(logits));
  check(features.size(2) <= 32768,
        "attention_residual: expected grid_features of at most 32768 cells a side, got ", features.size(2));
}

// A block's reads begin at multiples of `step` pixels. If those are multiples of 16 bytes, calls f(number of
// pixels in 16 bytes), otherwise f(1).
template <class S, class F>
void with_width(int64_t step, const S* a, const S* b, const F& f) {
  if (step % kPer16Bytes<S> == 0 && aligned16(a) && aligned16(b)) {
    f(std::integral_constant<int, kPer16Bytes<S>>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

// Bytes of maps that are held at a time, unless a single row takes more; few in the emulator, whose grids are
// small.
constexpr int64_t kMapBytes = kPlayed ? 40 << 10 : 256 << 20;

// Adds the maps that have just been computed to the logits of `cells` cells.
template <class S>
void stream(const Device& device, const char* op, const S* logits, S* out, const accumulator_t<S>* maps,
            int64_t cells, const Sizes& size) {
  with_width(size.width, logits, static_cast<const S*>(out), [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const StreamPlan<accumulator_t<S>> plan(size, kWidth);
    const auto run = [&](auto kernel, int64_t kept) {
      launch_as(Start::early, device, op, kernel, grid(op, cells * plan.tiles * plan.parts),
                dim3(kStreamThreads), kept * sizeof(accumulator_t<S>), logits, out, maps, size, plan);
    };
    if (plan.lines > 0) {
      run(attention_residual_stream_kernel<S, kWidth, true>, plan.lines * size.side);
    } else {
      run(attention_residual_stream_kernel<S, kWidth, false>, 0);
    }
  });
}

// Both are contiguous and [B, N, H, W]; they may be the same tensor. Takes as many images at a time as
// kMapBytes has room for; if not even one fits, as many rows of its map.
void add(const Tensor& logits, const Tensor& grid_features, double scale, bool tf32, Tensor& out) {
  constexpr const char* op = "attention_residual";
  const Device device(logits);
  const Tensor features = torch::stable::contiguous(grid_features);
  const Sizes size = sizes(logits, features);
  const int64_t cells = size.cells();
  if (size.batch * cells == 0) return;
  dispatch_product(op, logits.scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using P = stored_t<S>;
    using T = accumulator_t<S>;
    const int64_t room = kMapBytes / static_cast<int64_t>(cells * sizeof(T));  // rows of maps
    const int64_t images = std::max<int64_t>(1, std::min(size.batch, room / cells));
    const int64_t whole = room >= kMapBlock ? room / kMapBlock * kMapBlock : std::max<int64_t>(1, room);
    const int64_t rows = room >= cells ? cells : whole;
    Tensor maps =
        torch::stable::new_empty(features, {images * rows, cells}, accumulator_dtype(features.scalar_type()));
    T* between = maps.mutable_data_ptr<T>();
    const P *from = data<P>(logits), *vectors = data<P>(features);
    P* to = data<P>(out);
    for (int64_t b = 0; b < size.batch; b += images) {
      const int64_t some = std::min(images, size.batch - b);
      for (int64_t n = 0; n < cells; n += rows) {
        const MapRows plan = map_rows(cells, n, std::min(rows, cells - n));
        grid_attention::map<S>(device, op, vectors + size.features_offset(b), some, size.channels, cells,
                               plan, scale, between);
        stream<P>(device, op, from + size.logits_offset(b, n), to + size.logits_offset(b, n), between,
                  some * plan.rows, size);
      }
    }
  });
}

Tensor attention_residual_cuda(const Tensor& mask_logits, const Tensor& grid_features, double scale,
                               bool tf32) {
  check_arguments("mask_logits", mask_logits, grid_features);
  Tensor out = torch::stable::new_empty(mask_logits, mask_logits.sizes());
  add(torch::stable::contiguous(mask_logits), grid_features, scale, tf32, out);
  return out;
}

void attention_residual_inplace_cuda(Tensor mask_logits, const Tensor& grid_features, double scale,
                                     bool tf32) {
  check_arguments("mask_logits", mask_logits, grid_features);
  write_over(mask_logits, [&](const Tensor& in, Tensor& out) { add(in, grid_features, scale, tf32, out); });
}

Tensor attention_residual_bwd_cuda(const Tensor& grad, const Tensor& grid_features, double scale, bool tf32) {
  constexpr const char* op = "attention_residual_bwd";
  check_arguments("grad", grad, grid_features);
  const Device device(grad);
  const Tensor upstream = torch::stable::contiguous(grad),
               features = torch::stable::contiguous(grid_features);
  const Sizes size = sizes(upstream, features);
  Tensor out = torch::stable::new_empty(features, features.sizes());
  if (out.numel() == 0) return out;
  dispatch_product(op, features.scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using P = stored_t<S>;  // pixels are added, never multiplied with each other
    using T = accumulator_t<S>;
    Tensor maps = torch::stable::new_empty(features, {size.batch, size.cells(), size.cells()},
                                           accumulator_dtype(features.scalar_type()));
    const P* from = data<P>(upstream);
    with_width(size.width, from, from, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const GatherPlan<T> plan(size, kWidth);
      const int64_t blocks = ceil_div<int64_t>(size.batch * size.cells(), plan.cells);
      launch(device, op, attention_residual_gather_kernel<P, kWidth>, grid(op, blocks), dim3(kGatherThreads),
             plan.shared_bytes(size), from, size, plan, maps.mutable_data_ptr<T>());
    });
    symmetric_gradient<S>(device, op, maps.const_data_ptr<T>(), features, scale, out);
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::attention_residual

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("attention_residual", TORCH_BOX(&solo_attn::attention_residual::attention_residual_cuda));
  m.impl("attention_residual_", TORCH_BOX(&solo_attn::attention_residual::attention_residual_inplace_cuda));
  m.impl("attention_residual_bwd", TORCH_BOX(&solo_attn::attention_residual::attention_residual_bwd_cuda));
}
