// Products of matrices, tile by tile on the tensor cores, for the map and its gradient.
#pragma once

#include "../common/access.h"
#include "types.cuh"

namespace solo_attn::grid_attention {

// How two factors of type T are multiplied.
//   fma      float64: by multiply-adds.
//   exact    float32 as the sum of two tf32, x = high + low: high * high + high * low + low * high. What is
//            left out, low * low and the rounding of each low, is at most 3 * 2^-22 |x y| of a product.
//            Tensor cores truncate sums instead of rounding them, so every eight products of the high parts
//            are summed from 0 and added by FADD. (Ootomo and Yokota, Recovering single precision accuracy
//            from Tensor Cores, 2022.)
//   tf32     rounded to tf32.
//   split    the left factor is half precision, which tf32 holds; the right one is split as in exact.
enum class Factors { fma, exact, tf32, split };

template <class S>
constexpr Factors kFactors = std::is_same_v<S, double>  ? Factors::fma
                             : std::is_same_v<S, float> ? Factors::exact
                             : std::is_same_v<S, Tf32>  ? Factors::tf32
                                                        : Factors::split;

// The product [32, 32] of a warp. A lane holds, with g = lane / 4 and t = lane % 4, the rows 8i + g and the
// columns 8n + 2t and 8n + 2t + 1.
template <class T>
class WarpTile {
 public:
  static constexpr int kSide = 32;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum_[i / 16][i / 4 % 4][i % 4] = rest_[i / 16][i / 4 % 4][i % 4] = 0;
  }

  // Adds left(row, k) * right(k, column) for k in [0, kDepth), a multiple of 8.
  template <Factors kHow, int kDepth, class L, class R>
  __device__ __forceinline__ void add(const L& left, const R& right) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    if constexpr (kHow == Factors::fma) {
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
        T y[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) y[j] = right(k, j / 2 * 8 + 2 * t + j % 2);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const T x = left(8 * i + g, k);
#pragma unroll
          for (int j = 0; j < 8; ++j) sum_[i / 2][j / 2][i % 2 * 2 + j % 2] += x * y[j];
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kDepth; k += 8) {
        uint32_t high[4][2], low[4][2];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) cut<kHow>(right(k + t + 4 * i, 8 * n + g), high[n][i], low[n][i]);
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t most[4], least[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float x = left(16 * m + g + i % 2 * 8, k + t + i / 2 * 4);
            if constexpr (kHow == Factors::split) {
              most[i] = __float_as_uint(x);
            } else {
              cut<kHow>(x, most[i], least[i]);
            }
          }
          step<kHow>(m, most, least, high, low);
        }
      }
    }
  }

  // The same for half precision, from `left` and `right` in shared memory: [kDepth][kLeft] and
  // [kDepth][kRight], which start at the first row or column of this tile. kDepth is a multiple of 16, and
  // rows of both are aligned to 16 bytes.
  template <class S, int kDepth, int kLeft, int kRight>
  __device__ __forceinline__ void add_half(const S* left, const S* right) {
    const int lane = threadIdx.x % kWarp, row = lane % 8, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        // A: rows 0 and 8 at depth 0, then at depth 8. B: depth 0 and 8 at columns 0, then at columns 8.
        load_turned(a[m], left + (k + matrix / 2 * 8 + row) * kLeft + 16 * m + matrix % 2 * 8);
        load_turned(b[m], right + (k + matrix % 2 * 8 + row) * kRight + 16 * m + matrix / 2 * 8);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          mma(Type<S>{}, sum_[m][n], a[m], {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]});
        }
      }
    }
  }

  // f(row, column, value) for the products of this lane.
  template <Factors kHow, class F>
  __device__ __forceinline__ void each(const F& f) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int m = i / 16, n = i / 4 % 4;
      T value = sum_[m][n][i % 4];
      // The parts of an infinite factor have other signs than the factor, or are 0: its product is in sum_.
      if constexpr (kHow == Factors::exact) value += value - value == 0 ? rest_[m][n][i % 4] : T(0);
      f(16 * m + g + i % 4 / 2 * 8, 8 * n + 2 * t + i % 2, value);
    }
  }

 private:
  static constexpr int kSums = 32;

  // x = high + low, each as tensor cores read it: they ignore the last 13 bits, so half of the 13th bit is
  // added first.
  template <Factors kHow>
  static __device__ __forceinline__ void cut(float x, uint32_t& high, uint32_t& low) {
    if constexpr (kHow == Factors::tf32) {
      high = to_tf32(x);
    } else {
      high = (__float_as_uint(x) + 0x1000u) & ~0x1fffu;
      float rest = x - __uint_as_float(high);
      // Where both parts go into one sum, the low part of an infinite x must be 0.
      if (kHow == Factors::split && __uint_as_float(high) == x) rest = 0;
      low = __float_as_uint(rest) + 0x1000u;
    }
  }

  template <Factors kHow>
  __device__ __forceinline__ void step(int m, const uint32_t (&most)[4], const uint32_t (&least)[4],
                                       const uint32_t (&high)[4][2], const uint32_t (&low)[4][2]) {
    constexpr Type<Tf32> tf32{};
    if constexpr (kHow == Factors::exact) {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {  // two at a time: registers are few
        float part[2][4] = {};
        mma(tf32, part[0], most, high[n]);
        mma(tf32, part[1], most, high[n + 1]);
        mma(tf32, rest_[m][n], least, high[n]);
        mma(tf32, rest_[m][n + 1], least, high[n + 1]);
        mma(tf32, rest_[m][n], most, low[n]);
        mma(tf32, rest_[m][n + 1], most, low[n + 1]);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum_[m][n + i / 4][i % 4] += part[i / 4][i % 4];
      }
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) mma(tf32, sum_[m][n], most, high[n]);
      if constexpr (kHow == Factors::split) {
#pragma unroll
        for (int n = 0; n < 4; ++n) mma(tf32, sum_[m][n], most, low[n]);
      }
    }
  }

  T sum_[2][4][4];
  T rest_[2][4][4];  // of exact
};

// Padding between channels, in elements, for rows of a multiple of 32 cells: with 32 bytes, reads of 8 cells
// x 4 channels have no bank conflict; with 16, those of 8 channels x 16 bytes by load_turned.
template <class P>
constexpr int kPadding = sizeof(P) == 2 ? 8 : 32 / static_cast<int>(sizeof(P));

// Copies one element to shared memory, or 0; copies of 4 or 8 bytes are asynchronous.
template <class S>
__device__ __forceinline__ void stage_one(S* to, const S* from, bool inside) {
  if constexpr (sizeof(S) >= 4) {
    copy_async<sizeof(S)>(to, from, inside ? static_cast<int>(sizeof(S)) : 0);
  } else {
    *to = inside ? *from : S(0);
  }
}

// Copies kRows x kColumns elements to shared memory, in rows of kStride elements, from rows of `stride`
// elements of `from`; elements outside of its first `rows` and `columns` are 0. kAligned: 16 bytes at a time,
// asynchronously.
template <int kRows, int kColumns, int kStride, int kThreads, bool kAligned, class S>
__device__ __forceinline__ void stage(S* to, const S* from, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int kStep = kAligned ? kPer16Bytes<S> : 1, kAcross = kColumns / kStep, kDown = kThreads / kAcross;
  static_assert(kColumns % kStep == 0 && kThreads % kAcross == 0 && kRows % kDown == 0);
  const int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross * kStep;
  const int there = column < columns ? static_cast<int>(min(rows, int64_t(kRows))) : 0;
  const S* source = from + row * stride + column;
  to += row * kStride + column;
  [[maybe_unused]] constexpr int kUnrolled =
      kAligned ? kRows / kDown : 4;  // more single copies would take registers
#pragma unroll kUnrolled
  for (int r = 0; r < kRows; r += kDown) {
    const bool inside = row + r < there;
    if constexpr (kAligned) {
      copy_async(to + r * kStride, inside ? source : from, inside ? 16 : 0);
    } else {
      stage_one(to + r * kStride, inside ? source : from, inside);
    }
    source += kDown * stride;
  }
}

// Calls use(i % kStages) for i in [0, count), each after ask(i % kStages, i) has copied its input; kStages -
// 1 copies are in flight. All threads of the block call it. Before anything else writes to what `use` has
// read, a barrier is needed.
template <int kStages, class Ask, class Use>
__device__ __forceinline__ void in_stages(int count, const Ask& ask, const Use& use) {
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < count) ask(i, i);
    copy_async_commit();
  }
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    const int next = i + kStages - 1;  // reuses the buffer of i - 1, which all threads have used
    if (next < count) ask(next % kStages, next);
    copy_async_commit();
    use(i % kStages);
  }
}

}  // namespace solo_attn::grid_attention
