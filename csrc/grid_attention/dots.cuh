// Dot products of chosen cells with all others, by a block of 128 threads.
#pragma once

#include "../common/access.h"
#include "types.cuh"

namespace solo_attn::grid_attention {

// The channels that Dots takes at a time; V turned has a multiple of them, those in excess being 0.
constexpr int64_t kDepth = 32;

// V of all images: [C, N] each, as it came, or with tensor cores turned to [N, depth].
template <class S>
struct Vectors {
  const S* data;
  int64_t depth;
  int cells;

  __device__ const S* image(int64_t b) const { return data + b * depth * cells; }
};

// [C, N] -> [N, depth] of each image; Tf32 is rounded to what tensor cores read.
template <class S>
__global__ void __launch_bounds__(kThreads)
    grid_attention_turn_kernel(const S* in, int64_t channels, int64_t cells, int64_t depth, S* out) {
  using Word = std::conditional_t<sizeof(S) == 2, uint16_t, float>;
  SOLO_ATTN_SHARED(tile, Word[kWarp][kWarp + 4 / sizeof(Word)]);
  const int64_t across = ceil_div<int64_t>(cells, kWarp), down = depth / kWarp;
  const int64_t image = blockIdx.x / (across * down), rest = blockIdx.x % (across * down);
  const int64_t n = rest % across * kWarp, c = rest / across * kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int r = threadIdx.x / kWarp; r < kWarp; r += kThreads / kWarp) {
    const bool inside = c + r < channels && n + lane < cells;
    const Word* from = reinterpret_cast<const Word*>(in) + (image * channels + c + r) * cells + n + lane;
    Word word = inside ? *from : Word(0);
    if constexpr (std::is_same_v<S, Tf32>) word = __uint_as_float(to_tf32(word));
    tile[r][lane] = word;
  }
  __syncthreads();
  for (int r = threadIdx.x / kWarp; r < kWarp; r += kThreads / kWarp) {
    if (n + r < cells) {
      reinterpret_cast<Word*>(out)[(image * cells + n + r) * depth + c + lane] = tile[lane][r];
    }
  }
}

// Keeps alive the tensor that vectors.data points into.
template <class S>
struct Prepared {
  Tensor kept;
  Vectors<S> vectors;
  bool aligned;  // rows of four cells may be read at once
};

// `features` [B, C, S, S], contiguous, as Dots wants them.
template <class S>
Prepared<S> prepare(const Device& device, const char* op, const Tensor& features) {
  const int64_t batch = features.size(0), channels = features.size(1), side = features.size(2);
  const int64_t cells = side * side;
  check(cells <= 1 << 30, op, ": expected grid_features of at most 32768 cells a side, got ", side);
  if constexpr (kTensorCores<S>) {
    const int64_t depth = ceil_div(channels, kDepth) * kDepth;
    check(cells * depth / kPer16Bytes<S> <= 0x7fffffff, op,
          ": expected grid_features of fewer than 32 GB an image, got ", shape_of(features));
    Tensor turned = torch::stable::new_empty(features, {batch, cells, depth});
    const int64_t blocks = batch * ceil_div<int64_t>(cells, kWarp) * (depth / kWarp);
    S* out = data<S>(turned);
    launch(device, op, grid_attention_turn_kernel<S>, grid(op, blocks), dim3(kThreads), 0, data<S>(features),
           channels, cells, depth, out);
    return {turned, {out, depth, static_cast<int>(cells)}, cells % 4 == 0};
  } else {
    const S* in = data<S>(features);
    return {features, {in, channels, static_cast<int>(cells)}, cells % 4 == 0 && aligned16(in)};
  }
}

// The products of 32 cells with 128 of them, 32 in the registers of each thread: 8 rows x 4 columns, or of
// each warp 16 x 64 in eight tiles of mma. Each is summed over the channels in one order.
//
// FMA: a channel costs a thread 32 multiply-adds, one 16-byte load of columns, coalesced, from the first or
// second cache, and two of rows from shared memory, the same for a whole warp. mma: 32 channels, or 16 of
// tf32, cost a warp 16 instructions and ten 16-byte loads; which channels stand in which place of A and B
// does not matter so long as they agree, so a lane takes eight, or four, that follow each other.
template <class S, bool kAligned>
struct Dots {
  using T = accumulator_t<S>;
  static constexpr int kRows = 32, kColumns = 128;

  T sum[8][4];

  // rows: kRows cells in shared memory, each inside of the grid. Columns from `first` on; what lies beyond
  // the last cell holds nothing of use. All threads of the block come here.
  __device__ __forceinline__ void run(const Vectors<S>& vectors, int64_t image, const int* rows, int first) {
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 4; ++j) sum[i][j] = 0;
    }
    const S* from = vectors.image(image);
    if constexpr (kTensorCores<S>) {
      tensor_cores(from, vectors.depth, vectors.cells, rows, first);
    } else {
      fma(from, vectors.depth, vectors.cells, rows, first);
    }
  }

  // f(row, column, value) for the products of this thread; columns count from `first`.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kTensorCores<S>) {
          const int lane = threadIdx.x % kWarp;
          f(warp_row() + lane / 4 + j / 2 * 8, warp_column() + 8 * i + lane % 4 * 2 + j % 2, sum[i][j]);
        } else {
          f(group() * 8 + i, column() + j, sum[i][j]);
        }
      }
    }
  }

 private:
  static __device__ int warp_row() { return threadIdx.x / kWarp % (kRows / 16) * 16; }
  static __device__ int warp_column() { return threadIdx.x / kWarp / (kRows / 16) * 64; }
  static __device__ int group() { return threadIdx.x / (kColumns / 4); }
  static __device__ int column() { return threadIdx.x % (kColumns / 4) * 4; }

  __device__ __forceinline__ void tensor_cores(const S* from, int64_t depth, int cells, const int* rows,
                                               int first) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    // In words of 16 bytes, which int has room for.
    const int stride = static_cast<int>(depth / kPer16Bytes<S>);
    const auto* words = reinterpret_cast<const uint4*>(from) + t;
    const int upper = rows[warp_row() + g] * stride, lower = rows[warp_row() + g + 8] * stride;
    int at[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) at[i] = min(first + warp_column() + 8 * i + g, cells - 1) * stride;
#pragma unroll 1
    for (int c = 0; c < stride; c += 4, words += 4) {
      const uint4 a = words[upper], b = words[lower];
      const uint32_t early[4] = {a.x, b.x, a.y, b.y}, late[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint4 column = words[at[i]];
        const uint32_t x[2] = {column.x, column.y}, y[2] = {column.z, column.w};
        mma(Type<S>{}, sum[i], early, x);
        mma(Type<S>{}, sum[i], late, y);
      }
    }
  }

  static constexpr int kPart = sizeof(T) == 8 ? 16 : 32;  // channels of the rows in shared memory
  struct alignas(16) Rows {
    T at[kPart][kRows];
  };

  __device__ __forceinline__ void fma(const S* from, int64_t depth, int cells, const int* rows, int first) {
    SOLO_ATTN_SHARED(left, Rows);
    int at[4];
    for (int j = 0; j < 4; ++j) at[j] = min(first + column() + j, cells - (kAligned ? 4 : 1));
    for (int64_t c = 0; c < depth; c += kPart, from += static_cast<int64_t>(kPart) * cells) {
      const int some = static_cast<int>(min(static_cast<int64_t>(kPart), depth - c));
      __syncthreads();
      for (int e = threadIdx.x; e < some * kRows; e += kThreads) {
        left.at[e / kRows][e % kRows] = from[static_cast<int64_t>(e / kRows) * cells + rows[e % kRows]];
      }
      __syncthreads();
      const S* here = from;
#pragma unroll 4
      for (int k = 0; k < some; ++k, here += cells) {
        Run<T, 4> x;
        if constexpr (kAligned) {
          x = load<T, 4>(here + at[0]);
        } else {
          for (int j = 0; j < 4; ++j) x.at[j] = here[at[j]];
        }
        const Run<T, 8> y = load<T, 8>(left.at[k] + group() * 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[i][j] += y.at[i] * x.at[j];
        }
      }
    }
  }
};

}  // namespace solo_attn::grid_attention
