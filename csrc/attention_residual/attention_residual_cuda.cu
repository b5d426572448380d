// The mask logits, and the attention maps of their cells enlarged, in one pass over the logits.
//
// S = 40, C = 256, 168 x 336, one image: 361 MB (float32; half of it in half precision) are read and written,
// 168 us at an H200's 4.3 TB/s, or 84. The dot products, 2 C N^2 = 1.31 GFLOP and a fifth more where bands
// meet, take 24 us of its 67 TFLOP/s of float32 and hide behind the logits of the other blocks, as long as
// one of an SM's four streams while another multiplies; on the tensor cores 3 us, 5 with tf32. V comes from
// the second cache: 82 MB of float32 for 50 groups of 32 cells. Four blocks of 128 threads with eight reads
// of 16 bytes each are 64 KB on their way per SM, of which the bandwidth at 1 us of latency needs 33.
// Enlarging costs three flops a pixel, and a quarter as many reads of shared memory. The S x S maps never
// reach memory.
//
// Backward: 361 MB are read, 84 us. The gradient of the maps is stored, [B, N, N] in float32: 10 MB an image,
// which stay in the second cache for the product (grid_attention/gradient.cuh).
#include "../common/check.h"
#include "../common/dtypes.h"
#include "../grid_attention/gradient.cuh"
#include "add.cuh"
#include "attention_residual.h"
#include "attention_residual_arguments.h"
#include "gather.cuh"

namespace solo_attn::attention_residual {
namespace {

using grid_attention::data;
using grid_attention::dispatch_product;
using grid_attention::grid;
using grid_attention::prepare;
using grid_attention::Prepared;
using grid_attention::symmetric_gradient;

void check_arguments(const char* what, const Tensor& logits, const Tensor& features) {
  attention_residual::check_arguments(what, logits, features,
                                      Device::holds(features) && Device::holds(logits) &&
                                          logits.get_device_index() == features.get_device_index());
  check(logits.size(3) < 1 << 27, "attention_residual: expected ", what,
        " with rows of fewer than 2^27 pixels, got ", shape_of(logits));
}

// What a block reads begins at multiples of `step` pixels. If those are of 16 bytes: f(the pixels of 16
// bytes), else f(1).
template <class S, class F>
void with_width(int64_t step, const S* a, const S* b, const F& f) {
  if (step % kPer16Bytes<S> == 0 && aligned16(a) && aligned16(b)) {
    f(std::integral_constant<int, kPer16Bytes<S>>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

// Both contiguous, both [B, N, H, W]; they may be one tensor.
void add(const Tensor& logits, const Tensor& grid_features, double scale, bool tf32, Tensor& out) {
  constexpr const char* op = "attention_residual";
  const Device device(logits);
  const Tensor features = torch::stable::contiguous(grid_features);
  const Sizes size = sizes(logits, features);
  if (size.batch * size.cells() == 0) return;
  dispatch_product(op, logits.scalar_type(), tf32, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Prepared<S> prepared = prepare<S>(device, op, features);
    const AddPlan plan(size, Dots<S, kGroup, false>::kColumns, kMostColumns<S>);
    const S* from = data<S>(logits);
    S* to = data<S>(out);
    with_width(plan.span == size.side ? size.width : 1, from, static_cast<const S*>(to), [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const auto run = [&](auto kernel) {
        launch(device, op, kernel, grid(op, plan.blocks(size)), dim3(kThreads),
               add_shared_bytes<S, kWidth>(plan), from, to, prepared.vectors, size, plan, scale);
      };
      if (prepared.aligned || grid_attention::kTensorCores<S>) {
        run(attention_residual_fwd_kernel<S, kWidth, true>);
      } else {
        run(attention_residual_fwd_kernel<S, kWidth, grid_attention::kTensorCores<S>>);
      }
    });
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
    using P = grid_attention::stored_t<S>;  // pixels are added, never multiplied with each other
    using T = accumulator_t<S>;
    Tensor maps = torch::stable::new_empty(features, {size.batch, size.cells(), size.cells()},
                                           accumulator_dtype(features.scalar_type()));
    const P* from = data<P>(upstream);
    with_width(size.width, from, from, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const GatherPlan plan = gather_plan<T>(size, kWidth);
      const int64_t blocks = ceil_div<int64_t>(size.batch * size.cells(), plan.cells);
      launch(device, op, gather_kernel<P, kWidth>, grid(op, blocks), dim3(kThreads),
             gather_shared_bytes<T>(plan, size), from, size, plan, maps.mutable_data_ptr<T>());
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
