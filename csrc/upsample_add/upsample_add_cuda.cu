// Two bilinear upsamplings, added in one write, by the loop over rows in common/walk.cuh.
//
// K = 100 cells, h x w = 100 x 168 and S = 40 to H x W = 200 x 336 in float32: 27 MB are written and 7.4 MB
// read. A pixel is four multiply-adds; with the interpolation along x of the input rows, of which there are
// half as many for the coarse logits and a fifth for the attention, some 15 instructions. Backward
// (common/walk_back.cuh): 27 MB are read once for both gradients, four multiply-adds per pixel along y, and
// as many along x.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/walk_back.cuh"
#include "upsample_add.h"
#include "upsample_add_arguments.h"

namespace solo_attn::upsample_add {
namespace {

constexpr int kAhead = 4;  // rows of the gradient that a thread has on their way

// Columns of a thread: 16 bytes, or what registers allow where they are not stored by one instruction.
template <class S, bool kAligned>
constexpr int kColumns = std::min(kPer16Bytes<S>, kAligned ? 8 : 4);
// Blocks of 256 threads per SM: eight columns need more registers, and so does float64.
template <class S, bool kAligned>
constexpr int kBlocks = kColumns<S, kAligned> == 8 || sizeof(S) == 8 ? 2 : 3;

// kAligned: a thread's columns are 16 aligned bytes in every row.
template <class S, bool kAligned>
__global__ void __launch_bounds__(kWalkThreads, (kBlocks<S, kAligned>))
    upsample_add_fwd_kernel(CellMaps<S> maps, WalkPlan plan, S* out) {
  using T = accumulator_t<S>;
  constexpr int kCount = kColumns<S, kAligned>;
  SOLO_ATTN_SHARED(taps, RowTaps<T>[kWalkRows]);
  const WalkPlace place(plan, kCount, blockIdx.x);
  int columns[kCount];
  own_columns(place.x, plan.width, columns);
  CellWalk<S, kCount> cell(maps, place.cell, columns);
  const Images images{plan.height, plan.width};
  S* to = out + images.image(place.cell) + images.row(place.begin) + place.x;
  walk_band(maps, taps, place.begin, place.end - place.begin, [&](int, const RowTaps<T>& row) {
    T pixels[kCount];
    cell.logits(row, pixels);
    if constexpr (kAligned) {
      Run<S, kCount> run;
#pragma unroll
      for (int j = 0; j < kCount; ++j) run.at[j] = static_cast<S>(pixels[j]);
      if (place.x < plan.width) store_once(to, run);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (place.x + j < plan.width) to[j] = static_cast<S>(pixels[j]);
      }
    }
    to += plan.width;
  });
}

// The rows of a gradient from `begin` on, in a thread's columns.
template <class S, bool kAligned>
class Upstream {
 public:
  static constexpr int kCount = kColumns<S, kAligned>;
  using T = accumulator_t<S>;
  using Rows = Ahead<S, kCount, kAhead, kWalkThreads>;

  // `from`: the thread's first pixel of row `begin`; `left`: the number of columns from there on, which may
  // be 0.
  __device__ __forceinline__ Upstream(typename Rows::Places& places, const S* from, int width, int left,
                                      int begin, int end)
      : rows_(places), from_(from), width_(width), left_(left), begin_(begin), count_(end - begin) {
    if constexpr (kAligned) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k, from_ += width_) rows_.ask(k, from_, left_ > 0 && k < count_);
    }
  }
  __device__ __forceinline__ void operator()(int y, const RowTaps<T>&, T (&out)[kCount]) {
    const int k = y - begin_;  // the slot of row k is k % kAhead
    if constexpr (kAligned) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = 0;
      if (left_ <= 0) return;
      const auto run = rows_.take(k % kAhead);
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = static_cast<T>(run.at[j]);
      rows_.ask(k % kAhead, from_, k + kAhead < count_);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = j < left_ ? static_cast<T>(from_[j]) : T(0);
    }
    from_ += width_;
  }

 private:
  Rows rows_;
  const S* from_;
  int width_, left_, begin_, count_;
};

template <class S, bool kAligned>
__global__ void __launch_bounds__(kWalkThreads, (kBlocks<S, kAligned>))
    upsample_add_bwd_kernel(CellMaps<S> maps, WalkBackPlan plan, const S* grad, CellGradients<S> gradients) {
  using T = accumulator_t<S>;
  constexpr int kCount = kColumns<S, kAligned>;
  SOLO_ATTN_SHARED(taps, RowTaps<T>[kWalkRows]);
  SOLO_ATTN_SHARED(places, typename Upstream<S, kAligned>::Rows::Places);
  SOLO_ATTN_DYNAMIC_SHARED(T, memory);
  const auto bands = static_cast<unsigned>(plan.bands);
  const int64_t cell = blockIdx.x / bands;
  const int band = static_cast<int>(blockIdx.x % bands);
  const int width = maps.coarse_x.out;
  const Images large{maps.coarse_y.out, width};
  gradients.to_cell(maps, cell);
  for (int x0 = 0; x0 < width; x0 += plan.columns) {
    const int x = x0 + static_cast<int>(threadIdx.x) * kCount;
    walk_back<kCount>(maps, taps, plan, band, gradients, memory, x0, min(plan.columns, width - x0),
                      [&](int begin, int end) {
                        const S* from = grad + large.image(cell) + large.row(begin) + x;
                        return Upstream<S, kAligned>(places, from, width, width - x, begin, end);
                      });
  }
}

// Calls f(std::true_type{}) if `data`, in rows of `width`, can be read or written 16 bytes at a time.
template <class S, class F>
void with_runs(int64_t width, const S* data, const F& f) {
  if (width % kPer16Bytes<S> == 0 && aligned16(data)) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

Tensor upsample_add_cuda(const Tensor& coarse_logits, const std::optional<Tensor>& attention,
                         const std::vector<int64_t>& size) {
  constexpr const char* op = "upsample_add";
  const CellInputs cells(op, coarse_logits, attention);
  check_size(op, "size", size);
  check_walk(op, size);
  const Device device(cells.coarse());
  Tensor out = torch::stable::new_empty(cells.coarse(), {cells.count(), size[0], size[1]});
  dispatch_float(op, out.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    S* to = out.mutable_data_ptr<S>();
    with_runs<S>(size[1], to, [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      const WalkPlan plan(cells.count(), size[0], size[1], kColumns<S, kAligned>);
      launch(device, op, upsample_add_fwd_kernel<S, kAligned>, walk_grid(op, plan.blocks(cells.count())),
             dim3(plan.threads), 0, cells.maps<S>(size[0], size[1]), plan, to);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> upsample_add_bwd_cuda(const Tensor& grad, const std::vector<int64_t>& coarse_size,
                                                 const std::vector<int64_t>& attention_size) {
  constexpr const char* op = "upsample_add_bwd";
  check_backward(grad, coarse_size, attention_size);
  check_walk(op, {grad.size(1), grad.size(2), coarse_size[0], coarse_size[1], attention_size[0]});
  const Device device(grad);
  const Tensor upstream = torch::stable::contiguous(grad);
  const int64_t count = grad.size(0), height = grad.size(1), width = grad.size(2);
  const int64_t ch = coarse_size[0], cw = coarse_size[1];
  const int64_t ah = attention_size[0], aw = ah == 0 ? 0 : attention_size[1];
  Tensor coarse = torch::stable::new_empty(upstream, {count, ch, cw});
  Tensor rows = torch::stable::new_empty(upstream, {count, ah, aw});
  if (count == 0) return {coarse, rows};
  dispatch_float("upsample_add", upstream.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const S* from = upstream.const_data_ptr<S>();
    with_runs<S>(width, from, [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      const int64_t second = ah * aw > 0 ? aw : 0;
      constexpr int kCount = kColumns<S, kAligned>;
      const WalkBackPlan plan = WalkBackPlan::of<T>(
          count, std::max(ch, ah), WalkBackPlan::most_threads(width, kCount), kCount, cw, second);
      if (plan.turns(width) && !std::is_same_v<S, T>) {  // what is added in turns must not be rounded before
        const auto wide = upsample_add_bwd_cuda(torch::stable::to(upstream, ScalarType::Float), coarse_size,
                                                attention_size);
        torch::stable::copy_(coarse, std::get<0>(wide));
        torch::stable::copy_(rows, std::get<1>(wide));
        return;
      }
      const CellMaps<S> maps{nullptr,
                             nullptr,
                             TapAxis::of(ch, height),
                             TapAxis::of(cw, width),
                             TapAxis::of(ah, height),
                             TapAxis::of(aw, width)};
      const CellGradients<S> to{coarse.mutable_data_ptr<S>(),
                                ah * aw > 0 ? rows.mutable_data_ptr<S>() : nullptr};
      launch(device, op, upsample_add_bwd_kernel<S, kAligned>, walk_grid(op, count * plan.bands),
             dim3(plan.threads), plan.shared_bytes<T>(op, cw, second), maps, plan, from, to);
    });
  });
  return {coarse, rows};
}

}  // namespace
}  // namespace solo_attn::upsample_add

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("upsample_add", TORCH_BOX(&solo_attn::upsample_add::upsample_add_cuda));
  m.impl("upsample_add_bwd", TORCH_BOX(&solo_attn::upsample_add::upsample_add_bwd_cuda));
}
