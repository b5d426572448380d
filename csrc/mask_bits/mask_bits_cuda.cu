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
//
// The cells of all levels are in one launch, or in two where some levels have the size of the result and
// others are enlarged to it, which are two loops. One level is a table of one.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/levels.cuh"
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

template <class S>
struct Level {
  CellMaps<S> maps;
  ProbabilityAxes axes;
  WalkPlan plan;
  int64_t cell;  // the number of its first one among those of all levels
  int64_t part;  // likewise of its blocks
};

template <class S, bool kSame>
__global__ void __launch_bounds__(kWalkThreads, (std::min(kProbabilityBlocks<S, kSame>, kWalkResident)))
    mask_bits_fwd_kernel(const __grid_constant__ LevelTable<Level<S>> levels, accumulator_t<S> threshold,
                         BitRows out, Parts<accumulator_t<S>> parts) {
  using T = accumulator_t<S>;
  SOLO_ATTN_SHARED(shared, ProbabilityShared<S>);
  SOLO_ATTN_SHARED(area_parts, int[kWalkThreads / kWarp]);
  SOLO_ATTN_SHARED(sum_parts, T[kWalkThreads / kWarp]);
  constexpr int kColumns = kProbabilityColumns<S, kSame>;
  constexpr int kMates = 8 / kColumns;  // threads that make a byte
  uint32_t block = blockIdx.x;
  const Level<S>& level = levels.of(block);
  const WalkPlace place(level.plan, kColumns, block);
  const uint32_t inside = (1u << max(0, min(kColumns, level.plan.width - place.x))) - 1;
  const bool writes = threadIdx.x % kMates == 0 && inside != 0;
  uint8_t* to = out.bytes + (level.cell + place.cell) * out.stride + place.begin * out.pitch + place.x / 8;
  int area = 0;
  T sum = 0;
  walk_probabilities<kSame, kColumns>(level.maps, level.axes, place, shared, [&](int, const T(&p)[kColumns]) {
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
    parts.areas[level.part + block] = area;
    parts.sums[level.part + block] = sum;
  }
}

// A warp adds up a cell's parts, and clears the bytes of its words that have no pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    mask_bits_sum_kernel(const __grid_constant__ LevelTable<LevelParts> levels, Parts<T> parts, int64_t count,
                         int64_t* areas, T* means, uint8_t* words, int64_t used, int64_t bytes) {
  const int lane = threadIdx.x % kWarp;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (cell >= count) return;
  auto index = static_cast<uint32_t>(cell);
  const LevelParts& level = levels.of(index);
  const int64_t begin = level.begin + index * level.each;
  int64_t area = 0;
  double sum = 0;
  for (int64_t k = begin + lane; k < begin + level.each; k += kWarp) {
    area += parts.areas[k];
    sum += parts.sums[k];
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

// `sizes` has two numbers for each level.
std::tuple<Tensor, Tensor, Tensor> bits_of(const std::vector<Tensor>& coarse,
                                           const OptionalTensors& attention,
                                           const std::vector<int64_t>& sizes,
                                           const std::vector<int64_t>& out_size, double threshold) {
  constexpr const char* op = "mask_bits";
  const LevelInputs given(op, coarse, attention);
  check(sizes.size() == 2 * given.size(), op, ": expected sizes of ", given.size(), " levels, got ",
        described(sizes));
  for (size_t k = 0; k < given.size(); ++k) check_size(op, "size", {sizes[2 * k], sizes[2 * k + 1]});
  check_size(op, "out_size", out_size);
  check_walk(op, sizes);
  check_walk(op, out_size);
  const Device device(given.first());
  const int64_t count = given.cells(), height = out_size[0], width = out_size[1], pixels = height * width;
  const int64_t words = ceil_div<int64_t>(pixels, 64);
  const auto fresh = [&](ScalarType dtype, const std::vector<int64_t>& shape) {
    return torch::stable::new_empty(given.first(), shape, dtype);
  };
  const ScalarType wide = accumulator_dtype(given.dtype());
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
  dispatch_float(op, given.dtype(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    LevelTable<Level<S>> same_size, enlarged;
    LevelTable<LevelParts> sums;
    int64_t part = 0;
    for (size_t k = 0; k < given.size(); ++k) {
      const int64_t cells = given[k].count(), high = sizes[2 * k], broad = sizes[2 * k + 1];
      const ProbabilityAxes axes{TapAxis::of(high, height), TapAxis::of(broad, width)};
      with_same(axes, [&](auto same) {
        constexpr bool kSame = decltype(same)::value;
        const WalkPlan plan(count, height, width, kProbabilityColumns<S, kSame>);
        (kSame ? same_size : enlarged)
            .add({given[k].template maps<S>(high, broad), axes, plan, sums.total(), part},
                 plan.blocks(cells));
        sums.add({part, plan.parts}, cells);
        part += plan.blocks(cells);
      });
    }
    Tensor area_parts = fresh(ScalarType::Int, {part}), sum_parts = fresh(wide, {part});
    const Parts<T> parts{area_parts.mutable_data_ptr<int>(), sum_parts.mutable_data_ptr<T>()};
    const auto run = [&](auto same, const auto& levels) {
      launch(device, op, mask_bits_fwd_kernel<S, decltype(same)::value>, walk_grid(op, levels.total()),
             dim3(levels.threads()), 0, levels, threshold, rows, parts);
    };
    run(std::true_type{}, same_size);
    run(std::false_type{}, enlarged);
    // Where rows are bytes apart, the last word's bytes beyond the last row belong to no row.
    launch(device, op, mask_bits_sum_kernel<T>, walk_grid(op, ceil_div<int64_t>(count, kThreads / kWarp)),
           dim3(kThreads), 0, sums, parts, count, areas.mutable_data_ptr<int64_t>(),
           means.mutable_data_ptr<T>(), word, direct ? pixels / 8 : 8 * words, 8 * words);
  });
  if (!direct) {
    launch(device, op, mask_bits_pack_kernel, walk_grid(op, ceil_div<int64_t>(count * words, kThreads)),
           dim3(kThreads), 0, rows, pixels, width, words, count * words,
           static_cast<uint64_t*>(bits.mutable_data_ptr()));
  }
  return {bits, areas, means};
}

std::tuple<Tensor, Tensor, Tensor> mask_bits_cuda(const Tensor& coarse,
                                                  const std::optional<Tensor>& attention,
                                                  std::vector<int64_t> size, std::vector<int64_t> out_size,
                                                  double threshold) {
  return bits_of({coarse}, {attention}, size, out_size, threshold);
}

std::tuple<Tensor, Tensor, Tensor> mask_bits_levels_cuda(std::vector<Tensor> coarse,
                                                         std::vector<Tensor> attention,
                                                         std::vector<int64_t> sizes,
                                                         std::vector<int64_t> out_size, double threshold) {
  return bits_of(coarse, optional_levels("mask_bits", coarse, attention), sizes, out_size, threshold);
}

}  // namespace
}  // namespace solo_attn::mask_bits

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("mask_bits", TORCH_BOX(&solo_attn::mask_bits::mask_bits_cuda));
  m.impl("mask_bits_levels", TORCH_BOX(&solo_attn::mask_bits::mask_bits_levels_cuda));
}
