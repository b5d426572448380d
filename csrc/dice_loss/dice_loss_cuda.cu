// K rows, enlarged from h x w (and S x S) to H x W, by the walk down (common/walk.cuh), and back.
//
// Bytes: 4 h w + 4 S^2 + H W of a row are read, 41 MB for 300 rows at 200 x 336, 10 us; a gradient writes the
// first two again. Flops: as upsample_add's, and a sigmoid, whose two slow instructions a quarter of the
// lanes has units for. So it computes. Going back, one pass makes both gradients (common/walk_back.cuh): the
// sigmoid of a pixel is made once, and no map is stored.
//
// Sums are added up in each thread row by row, in each block, and then, in order, over a row's blocks.
#include <optional>
#include <tuple>

#include "../common/probability.cuh"
#include "../common/reduce.h"
#include "../common/walk_back.cuh"
#include "dice_loss.h"
#include "dice_loss_arguments.h"

namespace solo_attn::dice_loss {
namespace {

constexpr int kColumns = 4;
constexpr int kThreads = 128;  // of the kernel that finishes

// The targets in a thread's columns, row by row: the next four bytes are on their way. kAligned: they are one
// word in every row.
template <bool kAligned>
class TargetRows {
 public:
  // `from`: the thread's first pixel of the first of `count` rows; `left`: columns from there on.
  __device__ __forceinline__ TargetRows(const uint8_t* from, int width, int left, int count)
      : from_(from), width_(width), left_(left), count_(count), next_(0) {
    ask();
  }
  // Bit 8 j + 7 tells whether column j of the row is the object's; no other is set.
  __device__ __forceinline__ uint32_t take() {
    const uint32_t word = next_;
    from_ += width_;
    --count_;
    ask();
    return (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u;
  }

 private:
  __device__ __forceinline__ void ask() {
    if (count_ <= 0) return;
    if constexpr (kAligned) {
      if (left_ > 0) next_ = *reinterpret_cast<const uint32_t*>(from_);
    } else {
      next_ = 0;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (j < left_) next_ |= static_cast<uint32_t>(from_[j]) << 8 * j;
      }
    }
  }

  const uint8_t* from_;
  int width_, left_, count_;
  uint32_t next_;
};

__device__ __forceinline__ bool truth(uint32_t word, int j) { return (word >> (8 * j + 7) & 1) != 0; }

template <class S, bool kAligned>
__global__ void __launch_bounds__(kWalkThreads, sizeof(S) == 8 ? 1
                                                : kAligned     ? kWalkResident
                                                               : 2)
    dice_loss_fwd_kernel(CellMaps<S> maps, WalkPlan plan, const uint8_t* targets,
                         Sums<accumulator_t<S>>* parts) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(taps, RowTaps<T>[kWalkRows]);
  SOLO_ATTN_SHARED(warps, T[kWalkThreads / kWarp]);
  const WalkPlace place(plan, kColumns);
  const int left = plan.width - place.x;
  int columns[kColumns];
  own_columns(place.x, plan.width, columns);
  CellWalk<S, kColumns> cell(maps, place.cell, columns);
  const int64_t first = (place.cell * plan.height + place.begin) * plan.width + place.x;
  TargetRows<kAligned> rows(targets + first, plan.width, left, place.end - place.begin);
  Sums<T> sums{0, 0, 0};
  int pixels = 0;
  walk_down(maps, taps, place.begin, place.end, [&](int, const RowTaps<T>& row) {
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
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

// A warp adds up a row's parts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dice_loss_sum_kernel(const Sums<T>* parts, int64_t count, int64_t each, T eps, T* losses, T* kept) {
  const int lane = threadIdx.x % kWarp;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (cell >= count) return;
  double overlap = 0, squares = 0, pixels = 0;
  for (int64_t k = lane; k < each; k += kWarp) {
    const Sums<T> part = parts[cell * each + k];
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

// The gradient of the logits in a thread's columns, row by row.
template <class S, bool kAligned>
class Slopes {
 public:
  using T = accumulator_t<S>;

  __device__ __forceinline__ Slopes(const CellMaps<S>& maps, int64_t cell, const int (&columns)[kColumns],
                                    const TargetRows<kAligned>& rows, const Slope<T>& slope)
      : walk_(maps, cell, columns), rows_(rows), slope_(slope) {}
  __device__ __forceinline__ void operator()(int, const RowTaps<T>& row, T (&out)[kColumns]) {
    walk_.logits(row, out);
    const uint32_t word = rows_.take();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out[j] = slope_(logistic(out[j]), truth(word, j));
  }

 private:
  CellWalk<S, kColumns> walk_;
  TargetRows<kAligned> rows_;
  Slope<T> slope_;
};

template <class S, bool kAligned>
__global__ void __launch_bounds__(kWalkThreads, sizeof(S) == 8 ? 1 : 2)
    dice_loss_bwd_kernel(CellMaps<S> maps, WalkBackPlan plan, const uint8_t* targets,
                         const accumulator_t<S>* grads, const accumulator_t<S>* sums,
                         CellGradients<S> gradients) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(taps, RowTaps<T>[kWalkRows]);
  SOLO_ATTN_DYNAMIC_SHARED(T, memory);
  const int64_t cell = blockIdx.x / static_cast<unsigned>(plan.bands);
  const int width = maps.coarse_x.out;
  const auto slope = Slope<T>::of(grads[cell], sums[2 * cell], sums[2 * cell + 1]);
  gradients.to_cell(maps, cell);
  for (int x0 = 0; x0 < width; x0 += plan.columns) {
    const int x = x0 + static_cast<int>(threadIdx.x) * kColumns, left = width - x;
    int columns[kColumns];
    own_columns(x, width, columns);
    walk_back<kColumns>(
        maps, taps, plan, gradients, memory, x0, min(plan.columns, width - x0), [&](int begin, int end) {
          const int64_t first = (cell * maps.coarse_y.out + begin) * width + x;
          return Slopes<S, kAligned>(maps, cell, columns,
                                     TargetRows<kAligned>(targets + first, width, left, end - begin), slope);
        });
  }
}

// f(std::true_type{}) where four targets of a row are one word.
template <class F>
void with_words(int64_t width, const uint8_t* targets, const F& f) {
  if (width % kColumns == 0 && reinterpret_cast<uintptr_t>(targets) % kColumns == 0) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

std::tuple<Tensor, Tensor> dice_loss_cuda(const Tensor& coarse, const std::optional<Tensor>& attention,
                                          const Tensor& targets, double eps) {
  constexpr const char* op = "dice_loss";
  check_arguments(coarse, attention, targets);
  const CellInputs cells(op, coarse, attention);
  const int64_t count = cells.count(), height = targets.size(1), width = targets.size(2);
  check_walk(op, {height, width});
  const Device device(coarse);
  const Tensor truth = torch::stable::contiguous(targets);
  const ScalarType wide = accumulator_dtype(coarse.scalar_type());
  const WalkPlan plan(count, height, width, kColumns);
  Tensor losses = torch::stable::new_empty(coarse, {count}, wide);
  Tensor sums = torch::stable::new_empty(coarse, {count, 2}, wide);
  Tensor parts = torch::stable::new_empty(coarse, {plan.blocks(count), 3}, wide);
  dispatch_float(op, coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    auto* part = static_cast<Sums<T>*>(parts.mutable_data_ptr());
    const auto* bytes = static_cast<const uint8_t*>(truth.const_data_ptr());
    with_words(width, bytes, [&](auto aligned) {
      launch(device, op, dice_loss_fwd_kernel<S, decltype(aligned)::value>, walk_grid(op, plan.blocks(count)),
             dim3(plan.threads), 0, cells.maps<S>(height, width), plan, bytes, part);
    });
    launch(device, op, dice_loss_sum_kernel<T>, walk_grid(op, ceil_div<int64_t>(count, kThreads / kWarp)),
           dim3(kThreads), 0, part, count, static_cast<int64_t>(plan.parts), eps,
           losses.mutable_data_ptr<T>(), sums.mutable_data_ptr<T>());
  });
  return {losses, sums};
}

std::tuple<Tensor, Tensor> dice_loss_bwd_cuda(const Tensor& grad, const Tensor& coarse,
                                              const std::optional<Tensor>& attention, const Tensor& targets,
                                              const Tensor& sums, bool coarse_wanted, bool attention_wanted) {
  constexpr const char* op = "dice_loss_bwd";
  check_backward(grad, coarse, attention, targets, sums);
  const CellInputs cells("dice_loss", coarse, attention);
  const int64_t count = cells.count(), height = targets.size(1), width = targets.size(2);
  const int64_t ch = coarse_wanted ? coarse.size(1) : 0, cw = coarse_wanted ? coarse.size(2) : 0;
  const int64_t side = attention_wanted ? cells.side() : 0;
  check_walk(op, {height, width});
  const Device device(coarse);
  const Tensor truth = torch::stable::contiguous(targets);
  const Tensor upstream = torch::stable::contiguous(grad), kept = torch::stable::contiguous(sums);
  Tensor coarse_grad = torch::stable::new_empty(coarse, {count, ch, cw});
  Tensor attention_grad = torch::stable::new_empty(coarse, {count, side, side});
  if (count == 0 || ch + side == 0) return {coarse_grad, attention_grad};
  dispatch_float("dice_loss", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const WalkBackPlan plan = WalkBackPlan::of<T>(count, std::max(ch, side), width, kColumns, cw, side);
    if (plan.turns(width) && !std::is_same_v<S, T>) {  // what is added in turns must not be rounded before
      const auto single = [](const Tensor& x) { return torch::stable::to(x, ScalarType::Float); };
      const auto wide = dice_loss_bwd_cuda(grad, single(coarse),
                                           attention ? std::optional<Tensor>(single(*attention)) : attention,
                                           targets, sums, coarse_wanted, attention_wanted);
      torch::stable::copy_(coarse_grad, std::get<0>(wide));
      torch::stable::copy_(attention_grad, std::get<1>(wide));
      return;
    }
    const CellGradients<S> to{ch > 0 ? coarse_grad.mutable_data_ptr<S>() : nullptr,
                              side > 0 ? attention_grad.mutable_data_ptr<S>() : nullptr};
    const auto* bytes = static_cast<const uint8_t*>(truth.const_data_ptr());
    with_words(width, bytes, [&](auto aligned) {
      launch(device, op, dice_loss_bwd_kernel<S, decltype(aligned)::value>, walk_grid(op, count * plan.bands),
             dim3(plan.threads), plan.shared_bytes<T>(op, cw, side), cells.maps<S>(height, width), plan,
             bytes, upstream.const_data_ptr<T>(), kept.const_data_ptr<T>(), to);
    });
  });
  return {coarse_grad, attention_grad};
}

}  // namespace
}  // namespace solo_attn::dice_loss

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("dice_loss", TORCH_BOX(&solo_attn::dice_loss::dice_loss_cuda));
  m.impl("dice_loss_bwd", TORCH_BOX(&solo_attn::dice_loss::dice_loss_bwd_cuda));
}
