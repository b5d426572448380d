// Sums, minima and maxima over the lanes of a warp or a block, each in a fixed order; every lane gets the
// result.
#pragma once

#include "launch.h"

namespace solo_attn {

template <class T, class F>
__device__ __forceinline__ T warp_reduce(T x, const F& combine) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, bits));
  return x;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce(x, [](T a, T b) { return a + b; });
}

// `parts` is shared memory for one T per warp; nothing else may use it from before the first lane arrives
// until after the last one has left.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* parts) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  x = warp_sum(x);
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  x = warp_sum(lane < warps ? parts[lane] : T(0));
  __syncthreads();
  return x;
}

}  // namespace solo_attn
