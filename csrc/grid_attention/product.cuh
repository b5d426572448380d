// Products of two matrices that are both contiguous along the index of the sum, for the gradient of chosen
// rows.
#pragma once

#include "../common/access.h"
#include "types.cuh"

namespace solo_attn::grid_attention {

// sum [64, 32] of a block of 128 threads. Float types use multiply-adds; half precision uses the tensor cores
// in tf32, which represents each of its values exactly. Tf32 is rounded.
template <class S>
struct Product {
  using T = accumulator_t<S>;
  // The index of the sum, which the callers keep below 2^31. For float types 32 bits leave fewer registers,
  // not more.
  using Index = std::conditional_t<kTensorCores<S>, int, int64_t>;
  static constexpr int kRows = 64, kColumns = 32, kPart = 32;
  // Rows start four banks apart: reads of eight rows x four columns, or of eight rows x 16 bytes, have no
  // bank conflict.
  static constexpr int kStride = kPart + 4;
  struct alignas(16) Shared {
    T left[kRows][kStride];
    T right[kColumns][kStride];
  };

  T sum[16];

  __device__ __forceinline__ void clear() {
    for (int i = 0; i < 16; ++i) sum[i] = 0;
  }

  // sum += left . right over k in [begin, end). For left(row, k), k increases from lane to lane, and also for
  // right(column, k); with kTurned, right(k, column) is read with the column increasing. Outside of the
  // matrix they return 0.
  template <bool kTurned, class L, class R>
  __device__ __forceinline__ void run(Shared& shared, Index begin, Index end, const L& left, const R& right) {
    T a[16], b[8];
    const int fast = threadIdx.x % kWarp, slow = threadIdx.x / kWarp;
    const auto fetch = [&](Index k) {
      const bool inside = k + fast < end;
#pragma unroll
      for (int i = 0; i < 16; ++i) a[i] = inside ? left(slow + 4 * i, k + fast) : T(0);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if constexpr (kTurned) {
          b[i] = k + slow + 4 * i < end ? right(k + slow + 4 * i, fast) : T(0);
        } else {
          b[i] = inside ? right(slow + 4 * i, k + fast) : T(0);
        }
      }
    };
    if (begin < end) fetch(begin);
    for (Index k = begin; k < end; k += kPart) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 16; ++i) shared.left[slow + 4 * i][fast] = held(a[i]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        T& to = kTurned ? shared.right[fast][slow + 4 * i] : shared.right[slow + 4 * i][fast];
        to = held(b[i]);
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

 private:
  // A factor as it is stored in shared memory: Tf32 is rounded once for all reads.
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
        uint32_t b[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) b[i] = word(shared.right[warp_column() + 8 * n + g][k + t + 4 * i]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma(Type<Tf32>{}, reinterpret_cast<float (&)[4]>(sum[8 * m + 4 * n]), a[m], b);
        }
      }
    }
  }
};

}  // namespace solo_attn::grid_attention
