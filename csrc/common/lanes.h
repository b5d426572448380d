// Sums and maxima in 16 lanes with the same result on every instruction set, by GCC's vector types: the
// compiler uses as many registers as the processor needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd.h"

namespace solo_attn {

constexpr int64_t kSumLanes = 16;
template <class T>
using Lanes __attribute__((vector_size(kSumLanes * sizeof(T)))) = T;

// By reference: a returned vector has another ABI on each instruction set, and GCC warns about it.
template <class T, class V>
SOLO_ATTN_INLINE void load(const T* from, V& value) {
  std::memcpy(&value, from, sizeof(value));
}

template <class T>
SOLO_ATTN_INLINE T sum_of(const Lanes<T>& value) {
  typedef T Half __attribute__((vector_size(kSumLanes / 2 * sizeof(T))));
  typedef T Quarter __attribute__((vector_size(kSumLanes / 4 * sizeof(T))));
  Half half[2];
  std::memcpy(half, &value, sizeof(value));
  half[0] += half[1];
  Quarter quarter[2];
  std::memcpy(quarter, half, sizeof(quarter));
  quarter[0] += quarter[1];
  return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// The largest of `count` values, and of those that fill the last vector; NaN, which is above nothing, counts
// as the least.
template <class T>
SOLO_ATTN_INLINE T largest_of(const T* from, int64_t count) {
  Lanes<T> most = {};
  most += -std::numeric_limits<T>::infinity();
  for (int64_t x = 0; x < count; x += kSumLanes) {
    Lanes<T> value;
    load(from + x, value);
    most = value > most ? value : most;
  }
  T largest = most[0];
  for (int64_t lane = 1; lane < kSumLanes; ++lane) largest = std::max(largest, most[lane]);
  return largest;
}

}  // namespace solo_attn
