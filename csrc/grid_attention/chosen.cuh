// The rows of chosen cells of the attention map, and their gradient.
//
// The list of (image, cell) stays on the GPU: reading it on the host would mean a synchronisation. An entry
// outside of the batch or the grid fails a device-side assertion and is never used as an index: its row is
// NaN, and it does not contribute to a gradient.
#pragma once

#include "../common/reduce.h"
#include "map.cuh"
#include "product.cuh"

namespace solo_attn::grid_attention {

struct Chosen {
  const int64_t* pairs;  // of (image, cell)
  int count;
  int64_t batch;
  int64_t cells;

  // The image, or -1 if the entry is out of range.
  __device__ int64_t image(int64_t k) const {
    const int64_t b = pairs[2 * k], n = pairs[2 * k + 1];
    return b >= 0 && b < batch && n >= 0 && n < cells ? b : -1;
  }
  __device__ int cell(int64_t k) const { return static_cast<int>(pairs[2 * k + 1]); }
};

constexpr int kListed = kWarp;  // of the list, that a block looks at together

// Calls f for each image that occurs in `images` [kListed] in shared memory, without -1, in the order of
// first occurrence, which is the same for all warps.
template <class F>
__device__ __forceinline__ void each_image(const int64_t* images, const F& f) {
  const int lane = threadIdx.x % kWarp;
  bool first = images[lane] >= 0;
#pragma unroll
  for (int k = 0; k < kListed; ++k) first = first && (k >= lane || images[k] != images[lane]);
  const unsigned firsts = __ballot_sync(kAllLanes, first);
  for (int k = 0; k < kListed; ++k) {
    if (firsts >> k & 1) f(images[k]);
  }
}

constexpr int kChosenColumns = 4 * WarpTile<float>::kSide;  // of a block: a warp takes 32
constexpr int kChosenStages = 4;

template <class S>
struct alignas(16) ChosenStage {
  using P = stored_t<S>;
  static constexpr int kLeft = kListed + kPadding<P>, kRight = kChosenColumns + kPadding<P>;
  P left[kMapDepth<S>][kLeft];
  P right[kMapDepth<S>][kRight];
};

// A product of chosen cells' vectors with the maps of their images: out [K, columns] of one level.
template <class S>
struct ChosenProduct {
  using P = stored_t<S>;
  const P* left;  // a cell's vector; in elements, the next image, channel and cell are so far away:
  int64_t image_stride;
  int channel_stride, cell_stride;
  const P* right;  // [B, channels, columns]
  int channels, columns;
  const P* biases;  // [cells], added to the scaled product; null for none
  accumulator_t<S> scale;
  Chosen chosen;
  P* out;
  bool aligned;      // 16 bytes of `right` may be copied at once
  int64_t last = 0;  // the block after this product's blocks

  // 32 entries of the list times 128 columns each.
  int64_t blocks() const {
    return static_cast<int64_t>(ceil_div(chosen.count, kListed)) * ceil_div(columns, kChosenColumns);
  }
};

// The products of one launch, for instance of all levels: each has its own sizes.
constexpr int kProducts = 8;

template <class S>
struct ChosenProducts {
  ChosenProduct<S> at[kProducts] = {};
  int count = 0;

  void add(ChosenProduct<S> product) {
    product.last = blocks() + product.blocks();
    at[count++] = product;
  }
  int64_t blocks() const { return count == 0 ? 0 : at[count - 1].last; }
};

template <class S>
struct ChosenShared {
  ChosenStage<S> stages[kChosenStages];
  int64_t images[kListed];
  accumulator_t<S> biases[kListed];
};

// A block computes 32 entries of a list times 128 columns, once for each image among the 32: usually one. As
// for the whole map, the products use the tensor cores; the 32 vectors are gathered, one element per channel.
// The rows of grid_attention are the products of V with itself, coarse mask logits those of the weights of
// cells with the mask branch's maps.
//
// 2 C N flops per cell, three times that for exact float32; V is read once for 32 cells, 1.6 MB at S = 40, C
// = 256, float32, and 6.4 KB are written per cell.
template <class S>
__global__ void __launch_bounds__(kThreads, 2)
    grid_attention_chosen_kernel(const __grid_constant__ ChosenProducts<S> products) {
  using P = stored_t<S>;
  using T = accumulator_t<S>;
  using Stage = ChosenStage<S>;
  constexpr int kDepth = kMapDepth<S>, kAcross = kThreads / kListed;
  constexpr Factors kHow = kFactors<S>;
  // Exact sums leave few registers; their copies are asynchronous, so that none waits for the one before.
  [[maybe_unused]] constexpr int kUnrolled = kHow == Factors::exact ? 1 : kDepth / kAcross;
  SOLO_ATTN_SHARED(shared, ChosenShared<S>);
  int index = 0;
  while (blockIdx.x >= products.at[index].last) ++index;
  const ChosenProduct<S>& of = products.at[index];
  const int block = blockIdx.x - (index == 0 ? 0 : products.at[index - 1].last);
  const int columns = of.columns, across = ceil_div(columns, kChosenColumns);
  const int k0 = block / across * kListed, some = min(kListed, of.chosen.count - k0);
  const int first = block % across * kChosenColumns;
  const int k = threadIdx.x, row = k % kListed, column0 = k / kWarp * WarpTile<T>::kSide;
  auto& images = shared.images;
  if (k < kListed) {
    images[k] = k < some ? of.chosen.image(k0 + k) : -1;
    const bool added = of.biases != nullptr && images[k] >= 0;
    shared.biases[k] = added ? static_cast<T>(of.biases[of.chosen.cell(k0 + k)]) : T(0);
    SOLO_ATTN_DEVICE_ASSERT(k >= some || images[k] >= 0,
                            "grid_attention: expected cells of (image < B, cell < S*S)");
  }
  __syncthreads();
  const int64_t own = images[row] < 0 ? 0 : static_cast<int64_t>(of.chosen.cell(k0 + row)) * of.cell_stride;
  each_image(images, [&](int64_t image) {
    const P* from = of.right + image * of.channels * columns + first;
    const P* vector = of.left + image * of.image_stride + own;
    const bool mine = images[row] == image;
    WarpTile<T> product;
    product.clear();
    in_stages<kChosenStages>(
        ceil_div(of.channels, kDepth),
        [&](int to, int part) {
          const int c = part * kDepth;
          Stage& place = shared.stages[to];
#pragma unroll kUnrolled
          for (int d = k / kListed; d < kDepth; d += kAcross) {
            const bool inside = mine && c + d < of.channels;
            stage_one(&place.left[d][row],
                      inside ? vector + static_cast<int64_t>(c + d) * of.channel_stride : of.left, inside);
          }
          const auto copy = [&](auto aligned) {
            stage<kDepth, kChosenColumns, Stage::kRight, kThreads, decltype(aligned)::value>(
                place.right[0], from + static_cast<int64_t>(c) * columns, columns, of.channels - c,
                columns - first);
          };
          of.aligned ? copy(std::true_type{}) : copy(std::false_type{});
        },
        [&](int at) {
          const Stage& place = shared.stages[at];
          if constexpr (kHow == Factors::split) {
            product.template add_half<S, kDepth, Stage::kLeft, Stage::kRight>(place.left[0],
                                                                              place.right[0] + column0);
          } else {
            product.template add<kHow, kDepth>([&](int i, int d) { return place.left[d][i]; },
                                               [&](int d, int j) { return place.right[d][column0 + j]; });
          }
        });
    product.template each<kHow>([&](int i, int j, T value) {
      const int column = first + column0 + j;
      if (images[i] == image && column < columns) {
        of.out[static_cast<int64_t>(k0 + i) * columns + column] =
            static_cast<P>(of.scale * value + shared.biases[i]);
      }
    });
    __syncthreads();
  });
  for (int i = 0; i < some; ++i) {
    const int column = first + k;
    if (images[i] < 0 && column < columns) {
      of.out[static_cast<int64_t>(k0 + i) * columns + column] = static_cast<P>(__uint_as_float(0x7fc00000u));
    }
  }
}

constexpr int kParts = 8;  // that sums over the cells are cut into, to have blocks for more of the GPU

// picked [kParts, K, C], whose sum over the parts is D V^T with the V of each entry's image: the gradient
// that a cell's own vector gets from its row D. 128 blocks for 100 cells of 256 channels.
template <class S>
__global__ void __launch_bounds__(kThreads, 2)
    grid_attention_picked_kernel(const S* grad, const S* features, Chosen chosen, int64_t channels,
                                 accumulator_t<S>* out) {
  using T = accumulator_t<S>;
  using Sum = Product<S>;
  SOLO_ATTN_SHARED(shared, typename Sum::Shared);
  static_assert(Sum::kColumns == kListed);
  SOLO_ATTN_SHARED(images, int64_t[kListed]);
  const int64_t down = ceil_div<int64_t>(channels, Sum::kRows), cells = chosen.cells;
  const int64_t c0 = blockIdx.x % down * Sum::kRows;
  const int64_t part = blockIdx.x / down % kParts;
  const int64_t length = ceil_div<int64_t>(ceil_div<int64_t>(cells, Sum::kPart), kParts) * Sum::kPart;
  const int64_t begin = min(part * length, cells), end = min(begin + length, cells);
  const int k0 = static_cast<int>(blockIdx.x / down / kParts) * kListed;
  const int some = min(kListed, chosen.count - k0);
  if (threadIdx.x < kListed) {
    images[threadIdx.x] = static_cast<int>(threadIdx.x) < some ? chosen.image(k0 + threadIdx.x) : -1;
  }
  out += part * chosen.count * channels;
  __syncthreads();
  each_image(images, [&](int64_t image) {
    const S* from = features + image * channels * cells;
    Sum product;
    product.clear();
    product.template run<false>(
        shared, begin, end,
        [&](int row, int64_t n) {
          return c0 + row < channels ? static_cast<T>(from[(c0 + row) * cells + n]) : T(0);
        },
        [&](int column, int64_t n) {
          return images[column] == image ? static_cast<T>(grad[(k0 + column) * cells + n]) : T(0);
        });
    product.each([&](int row, int column, T value) {
      if (images[column] == image && c0 + row < channels) {
        out[(k0 + column) * channels + c0 + row] = value;
      }
    });
  });
}

// dV = scale * (V_chosen D + picked at the chosen cells), added in the order of the list, which may name a
// cell more than once.
//
// 4 C N flops per cell together with grid_attention_picked_kernel, and two reads of D and V. A block looks at
// the entries from the first to the last one of its image, which are all its own if the list is sorted by
// image.
template <class S>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 2 : 4)
    grid_attention_chosen_gradient_kernel(const S* grad, const S* features, const accumulator_t<S>* picked,
                                          Chosen chosen, int64_t channels, accumulator_t<S> scale, S* out) {
  using T = accumulator_t<S>;
  using Sum = Product<S>;
  SOLO_ATTN_SHARED(shared, typename Sum::Shared);
  SOLO_ATTN_SHARED(range, int[2]);
  const int64_t cells = chosen.cells, across = ceil_div<int64_t>(cells, Sum::kColumns);
  const int64_t down = ceil_div<int64_t>(channels, Sum::kRows);
  const int64_t b = blockIdx.x / (across * down), rest = blockIdx.x % (across * down);
  const int64_t c0 = rest % down * Sum::kRows, n0 = rest / down * Sum::kColumns;
  if (threadIdx.x < 2) range[threadIdx.x] = threadIdx.x == 0 ? chosen.count : 0;
  __syncthreads();
  int first = chosen.count, last = 0;
  for (int k = threadIdx.x; k < chosen.count; k += kThreads) {
    if (chosen.image(k) != b) continue;
    first = min(first, k);
    last = k + 1;
  }
  first = warp_reduce(first, [](int x, int y) { return min(x, y); });
  last = warp_reduce(last, [](int x, int y) { return max(x, y); });
  if (threadIdx.x % kWarp == 0) {
    atomicMin(&range[0], first);
    atomicMax(&range[1], last);
  }
  __syncthreads();
  features += b * channels * cells;
  out += b * channels * cells;
  Sum product;
  product.clear();
  product.template run<true>(
      shared, range[0], range[1],
      [&](int row, int64_t k) {
        const bool mine = c0 + row < channels && chosen.image(k) == b;
        return mine ? static_cast<T>(features[(c0 + row) * cells + chosen.cell(k)]) : T(0);
      },
      [&](int64_t k, int column) {
        const bool mine = n0 + column < cells && chosen.image(k) == b;
        return mine ? static_cast<T>(grad[k * cells + n0 + column]) : T(0);
      });
  for (int64_t k0 = range[0]; k0 < range[1]; k0 += kWarp) {
    // Each warp looks at 32 entries of the list at once, of which few belong to this block.
    const int64_t k = k0 + threadIdx.x % kWarp;
    const int64_t own = k < range[1] && chosen.image(k) == b ? chosen.cell(k) - n0 : -1;
    const unsigned here = __ballot_sync(kAllLanes, own >= 0 && own < Sum::kColumns);
    for (int lane = 0; lane < kWarp; ++lane) {
      if ((here >> lane & 1) == 0) continue;
      const int cell = __shfl_sync(kAllLanes, static_cast<int>(own), lane);
      product.each([&](int row, int column, T& value) {
        if (column != cell || c0 + row >= channels) return;
        for (int64_t part = 0; part < kParts; ++part) {
          value += picked[(part * chosen.count + k0 + lane) * channels + c0 + row];
        }
      });
    }
  }
  product.each([&](int row, int column, T value) {
    if (c0 + row < channels && n0 + column < cells) {
      out[(c0 + row) * cells + n0 + column] = static_cast<S>(scale * value);
    }
  });
}

}  // namespace solo_attn::grid_attention
