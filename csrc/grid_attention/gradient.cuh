// Products of matrices that both lie with the sum's index last, for the gradients of grid_attention and
// attention_residual.
#pragma once

#include "dots.cuh"

namespace solo_attn::grid_attention {

// sum [64, 32] of a block of 128 threads. Float types multiply and add; half precision goes through the
// tensor cores as tf32, which holds each of its values exactly. The right factor may be a float32 that it
// does not hold (a sum of gradients): then it is split in two, and 22 bits of it count. Tf32 is rounded.
template <class S, bool kSplit>
struct Product {
  using T = accumulator_t<S>;
  // Of the sum, which the callers keep below 2^31. For float types 32 bits leave fewer registers, not more.
  using Index = std::conditional_t<kTensorCores<S>, int, int64_t>;
  static constexpr int kRows = 64, kColumns = 32, kPart = 32;
  // Four words apart in the banks, row by row: reads of eight rows x four columns, or of eight rows by 16
  // bytes, meet no bank twice.
  static constexpr int kStride = kPart + 4;
  struct alignas(16) Shared {
    T left[kRows][kStride];
    T right[kColumns][kStride];
  };

  T sum[16];

  __device__ __forceinline__ void clear() {
    for (int i = 0; i < 16; ++i) sum[i] = 0;
  }

  // sum += left . right over k in [begin, end). left(row, k) is read with k from lane to lane, and the right
  // factor is right(column, k), read in the same way, plus turned(k, column), read with the column from lane
  // to lane; either may be None. What lies outside of the matrices they return as 0.
  template <class L, class R, class U>
  __device__ __forceinline__ void run(Shared& shared, Index begin, Index end, const L& left, const R& right,
                                      const U& turned) {
    T a[16], b[8], u[8];
    const int fast = threadIdx.x % kWarp, slow = threadIdx.x / kWarp;
    const auto fetch = [&](Index k) {
      const bool inside = k + fast < end;
#pragma unroll
      for (int i = 0; i < 16; ++i) a[i] = inside ? left(slow + 4 * i, k + fast) : T(0);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if constexpr (kIs<R>) b[i] = inside ? right(slow + 4 * i, k + fast) : T(0);
        if constexpr (kIs<U>) u[i] = k + slow + 4 * i < end ? turned(k + slow + 4 * i, fast) : T(0);
      }
    };
    if (begin < end) fetch(begin);
    for (Index k = begin; k < end; k += kPart) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 16; ++i) shared.left[slow + 4 * i][fast] = held(a[i]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if constexpr (kIs<R>) {
          shared.right[slow + 4 * i][fast] = kIs<U> ? b[i] : held(b[i]);
        } else {
          shared.right[fast][slow + 4 * i] = held(u[i]);
        }
      }
      if constexpr (kIs<R> && kIs<U>) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          T& sum = shared.right[fast][slow + 4 * i];
          sum = held(sum + u[i]);
        }
      }
      __syncthreads();
      if (k + kPart < end) fetch(k + kPart);
      add(shared);
    }
  }

  // f(row, column, value) for the sums of this thread.
  template <class F>
  __device__ __forceinline__ void each(const F& f) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if constexpr (kTensorCores<S>) {
        const int lane = threadIdx.x % kWarp;
        f(warp_row() + i / 8 * 16 + lane / 4 + i % 4 / 2 * 8,
          warp_column() + i / 4 % 2 * 8 + lane % 4 * 2 + i % 2, sum[i]);
      } else {
        f(threadIdx.x / 8 + i / 4 * 16, threadIdx.x % 8 + i % 4 * 8, sum[i]);
      }
    }
  }

  struct None {};

 private:
  template <class F>
  static constexpr bool kIs = !std::is_same_v<F, None>;

  // A factor as it stands in shared memory: Tf32 rounded, once for all that read it.
  static __device__ __forceinline__ T held(T x) {
    if constexpr (std::is_same_v<S, Tf32>) {
      return __uint_as_float(to_tf32(x));
    } else {
      return x;
    }
  }

  static __device__ __forceinline__ uint32_t word(float x) {
    return std::is_same_v<S, Tf32> ? __float_as_uint(x) : to_tf32(x);
  }

  static __device__ int warp_row() { return threadIdx.x / kWarp % 2 * 32; }
  static __device__ int warp_column() { return threadIdx.x / kWarp / 2 * 16; }

  __device__ __forceinline__ void add(const Shared& shared) {
    if constexpr (kTensorCores<S>) {
      tensor_cores(shared);
    } else {
#pragma unroll 2
      for (int k = 0; k < kPart; k += 4) {
        Run<T, 4> x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = load<T, 4>(shared.left[threadIdx.x / 8 + 16 * i] + k);
          y[i] = load<T, 4>(shared.right[threadIdx.x % 8 + 8 * i] + k);
        }
#pragma unroll
        for (int d = 0; d < 4; ++d) {
#pragma unroll
          for (int i = 0; i < 16; ++i) sum[i] += x[i / 4].at[d] * y[i % 4].at[d];
        }
      }
    }
  }

  __device__ __forceinline__ void tensor_cores(const Shared& shared) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll 2
    for (int k = 0; k < kPart; k += 8) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        a[i / 4][i % 4] = word(shared.left[warp_row() + i / 4 * 16 + g + i % 2 * 8][k + t + i % 4 / 2 * 4]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t high[2], low[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float x = shared.right[warp_column() + 8 * n + g][k + t + 4 * i];
          high[i] = word(x);
          const float most = __uint_as_float(high[i]);
          low[i] = to_tf32(most == x ? 0.0f : x - most);  // an infinite x has no rest
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float (&to)[4] = reinterpret_cast<float (&)[4]>(sum[8 * m + 4 * n]);
          mma(Type<Tf32>{}, to, a[m], high);
          if constexpr (kSplit) mma(Type<Tf32>{}, to, a[m], low);
        }
      }
    }
  }
};

template <class S>
using SymmetricProduct = Product<S, !std::is_same_v<S, Tf32>>;

// dV = scale * V (dG + dG^T) of each image: V and dV are [C, N], dG is [N, N].
//
// S = 40, C = 256: 1.31 GFLOP an image, with float32 20 us of an H200's 67 TFLOP/s, with half precision twice
// that by tf32 in 10 us, with float32 as tf32 in 5. dG, 10 MB of float32, is read twice for each 64 channels,
// from the second cache, in which it fits. dG + dG^T is formed in shared memory, 32 x 32 at a time. Blocks
// 200 an image.
template <class S, class G>
__global__ void __launch_bounds__(kThreads, kBlocksAnSm<S>)
    symmetric_gradient_kernel(const G* grad, const S* features, int64_t channels, int64_t cells,
                              accumulator_t<S> scale, S* out) {
  using T = accumulator_t<S>;
  using Sum = SymmetricProduct<S>;
  SOLO_ATTN_SHARED(shared, typename Sum::Shared);
  const int64_t across = ceil_div<int64_t>(cells, Sum::kColumns);
  const int64_t down = ceil_div<int64_t>(channels, Sum::kRows);
  const int64_t b = blockIdx.x / (across * down), rest = blockIdx.x % (across * down);
  const int64_t c0 = rest % down * Sum::kRows, n0 = rest / down * Sum::kColumns;
  features += b * channels * cells;
  out += b * channels * cells;
  grad += b * cells * cells;
  Sum product;
  product.clear();
  product.run(
      shared, 0, cells,
      [&](int row, int64_t k) {
        return c0 + row < channels ? static_cast<T>(features[(c0 + row) * cells + k]) : T(0);
      },
      [&](int column, int64_t k) {
        return n0 + column < cells ? static_cast<T>(grad[(n0 + column) * cells + k]) : T(0);
      },
      [&](int64_t k, int column) {
        return n0 + column < cells ? static_cast<T>(grad[k * cells + n0 + column]) : T(0);
      });
  product.each([&](int row, int column, T value) {
    if (c0 + row < channels && n0 + column < cells) {
      out[(c0 + row) * cells + n0 + column] = static_cast<S>(scale * value);
    }
  });
}

template <class S, class G>
void symmetric_gradient(const Device& device, const char* op, const G* grad, const Tensor& features,
                        double scale, Tensor& out) {
  using Sum = SymmetricProduct<S>;
  const int64_t batch = features.size(0), channels = features.size(1),
                cells = features.size(2) * features.size(2);
  const int64_t blocks =
      batch * ceil_div<int64_t>(cells, Sum::kColumns) * ceil_div<int64_t>(channels, Sum::kRows);
  launch(device, op, symmetric_gradient_kernel<S, G>, grid(op, blocks), dim3(kThreads), 0, grad,
         data<S>(features), channels, cells, scale, data<S>(out));
}

}  // namespace solo_attn::grid_attention
