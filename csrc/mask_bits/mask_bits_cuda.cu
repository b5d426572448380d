// K cells, from h x w (and S x S) by way of `size` to bits at out_size H x W, by the walk down
// (common/probability.cuh).
//
// Bytes: 4 h w + 4 S^2 per cell are read, H W / 8 are written: 200 cells at 200 x 336 take 16 MB, 4 us. So it
// is bound by arithmetic: per pixel a sigmoid, of two of the slow instructions that only a quarter of the
// lanes have units for, and some 25 others. Every thread has four columns (two in float64); two (four)
// neighbours make a byte. If rows begin in the middle of a byte, they are written to scratch memory in whole
// bytes, [K, H, ceil(W / 8)], and a second kernel assembles the words: nothing has to be cleared first, and
// no two threads write to the same word.
//
// Areas and sums are added up in each thread, in each block, and then, in order, over a cell's blocks.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/probability.cuh"
#include "../common/reduce.h"
#include "mask_bits.h"

namespace solo_attn::mask_bits {
namespace {

constexpr int kThreads = 128;  // of the kernels that finish

// Where bits go: `pitch` bytes a row, `stride` bytes a mask.
struct BitRows {
  uint8_t* bytes;
  int64_t stride;
  int64_t pitch;
};

// Of each block.
template <class T>
struct Parts {
  int* areas;
  T* sums;
};

template <class S, bool kSame>
__global__ void __launch_bounds__(kWalkThreads, (std::min(kProbabilityBlocks<S, kSame>, kWalkResident)))
    mask_bits_fwd_kernel(CellMaps<S> maps, ProbabilityAxes axes, WalkPlan plan, accumulator_t<S> threshold,
                         BitRows out, Parts<accumulator_t<S>> parts) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(shared, ProbabilityShared<S>);
  SOLO_ATTN_SHARED(area_parts, int[kWalkThreads / kWarp]);
  SOLO_ATTN_SHARED(sum_parts, T[kWalkThreads / kWarp]);
  constexpr int kColumns = kProbabilityColumns<S, kSame>;
  constexpr int kMates = 8 / kColumns;  // threads that make a byte
  const WalkPlace place(plan, kColumns);
  const uint32_t inside = (1u << max(0, min(kColumns, plan.width - place.x))) - 1;
  const bool writes = threadIdx.x % kMates == 0 && inside != 0;
  uint8_t* to = out.bytes + place.cell * out.stride + place.begin * out.pitch + place.x / 8;
  int area = 0;
  T sum = 0;
  walk_probabilities<kSame, kColumns>(maps, axes, place, shared, [&](int, const T(&p)[kColumns]) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) bits |= (p[j] > threshold ? 1u : 0u) << j;
    bits &= inside;
    T row = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) row += (bits >> j & 1) != 0 ? p[j] : T(0);
    sum += row;
    area += __popc(bits);
#pragma unroll
    for (int step = 1; step < kMates; step *= 2) {
      bits |= __shfl_down_sync(kAllLanes, bits, step) << kColumns * step;
    }
    if (writes) *to = static_cast<uint8_t>(bits);
    to += out.pitch;
  });
  area = block_sum(area, area_parts);
  sum = block_sum(sum, sum_parts);
  if (threadIdx.x == 0) {
    parts.areas[blockIdx.x] = area;
    parts.sums[blockIdx.x] = sum;
  }
}

// A warp adds up a cell's parts, and clears the bytes of its words that have no pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    mask_bits_sum_kernel(Parts<T> parts, int64_t count, int64_t each, int64_t* areas, T* means,
                         uint8_t* words, int64_t used, int64_t bytes) {
  const int lane = threadIdx.x % kWarp;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (cell >= count) return;
  int64_t area = 0;
  double sum = 0;
  for (int64_t k = lane; k < each; k += kWarp) {
    area += parts.areas[cell * each + k];
    sum += parts.sums[cell * each + k];
  }
  area = warp_sum(area);
  sum = warp_sum(sum);
  if (lane == 0) {
    areas[cell] = area;
    means[cell] = maskness<T>(sum, area);
  }
  if (used + lane < bytes) words[cell * bytes + used + lane] = 0;  // fewer than eight
}

// Words of 64 pixels from rows of whole bytes, which have no bit set beyond their last pixel.
__global__ void __launch_bounds__(kThreads) mask_bits_pack_kernel(BitRows rows, int64_t pixels, int64_t width,
                                                                  int64_t words, int64_t all, uint64_t* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t first = index % words * 64, last = min(first + 64, pixels);
  const uint8_t* mask = rows.bytes + index / words * rows.stride;
  int64_t y = first / width, x = first % width;
  uint64_t word = 0;
  for (int64_t pixel = first; pixel < last;) {
    // The rest of a byte, of which the rest of the row is part.
    const int64_t take = min(min(8 - x % 8, width - x), last - pixel);
    const uint64_t bits = mask[y * rows.pitch + x / 8] >> x % 8;
    word |= (bits & ((1u << take) - 1)) << (pixel - first);
    pixel += take;
    x += take;
    if (x == width) {
      x = 0;
      ++y;
    }
  }
  out[index] = word;
}

std::tuple<Tensor, Tensor, Tensor> mask_bits_cuda(const Tensor& coarse,
                                                  const std::optional<Tensor>& attention,
                                                  std::vector<int64_t> size, std::vector<int64_t> out_size,
                                                  double threshold) {
  constexpr const char* op = "mask_bits";
  const CellInputs cells(op, coarse, attention);
  check_size(op, "size", size);
  check_size(op, "out_size", out_size);
  check_walk(op, size);
  check_walk(op, out_size);
  const Device device(cells.coarse());
  const int64_t count = cells.count(), height = out_size[0], width = out_size[1], pixels = height * width;
  const int64_t words = ceil_div<int64_t>(pixels, 64);
  const auto fresh = [&](ScalarType dtype, const std::vector<int64_t>& shape) {
    return torch::stable::new_empty(cells.coarse(), shape, dtype);
  };
  const ScalarType wide = accumulator_dtype(coarse.scalar_type());
  Tensor bits = fresh(ScalarType::Long, {count, words}), areas = fresh(ScalarType::Long, {count});
  Tensor means = fresh(wide, {count});
  const bool direct = width % 8 == 0;
  auto* word = static_cast<uint8_t*>(bits.mutable_data_ptr());
  BitRows rows{word, 8 * words, ceil_div<int64_t>(width, 8)};
  Tensor scratch = bits;
  if (!direct) {
    rows.stride = height * rows.pitch;
    scratch = fresh(ScalarType::Byte, {count, rows.stride});
    rows.bytes = static_cast<uint8_t*>(scratch.mutable_data_ptr());
  }
  const ProbabilityAxes axes{TapAxis::of(size[0], height), TapAxis::of(size[1], width)};
  dispatch_float(op, coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    with_same(axes, [&](auto same) {
      constexpr bool kSame = decltype(same)::value;
      const WalkPlan plan(count, height, width, kProbabilityColumns<S, kSame>);
      const int64_t blocks = plan.blocks(count);
      Tensor area_parts = fresh(ScalarType::Int, {blocks}), sum_parts = fresh(wide, {blocks});
      const Parts<T> parts{area_parts.mutable_data_ptr<int>(), sum_parts.mutable_data_ptr<T>()};
      launch(device, op, mask_bits_fwd_kernel<S, kSame>, walk_grid(op, blocks), dim3(plan.threads), 0,
             cells.maps<S>(size[0], size[1]), axes, plan, threshold, rows, parts);
      // Where rows are bytes apart, the last word's bytes beyond the last row belong to no row.
      launch(device, op, mask_bits_sum_kernel<T>, walk_grid(op, ceil_div<int64_t>(count, kThreads / kWarp)),
             dim3(kThreads), 0, parts, count, static_cast<int64_t>(plan.parts),
             areas.mutable_data_ptr<int64_t>(), means.mutable_data_ptr<T>(), word,
             direct ? pixels / 8 : 8 * words, 8 * words);
    });
  });
  if (!direct) {
    launch(device, op, mask_bits_pack_kernel, walk_grid(op, ceil_div<int64_t>(count * words, kThreads)),
           dim3(kThreads), 0, rows, pixels, width, words, count * words,
           static_cast<uint64_t*>(bits.mutable_data_ptr()));
  }
  return {bits, areas, means};
}

}  // namespace
}  // namespace solo_attn::mask_bits

SOLO_ATTN_CUDA_LIBRARY(m) { m.impl("mask_bits", TORCH_BOX(&solo_attn::mask_bits::mask_bits_cuda)); }
