// The logistic function without branches, so that loops over it vectorise. Exactly 1/2 at 0, a usual
// threshold, and 0 for very negative logits. NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace solo_attn {

// exp(x) = 2^n exp(r) with n = round(x / ln 2). Adding kRound leaves n in the low bits of the sum.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  using Bits = uint32_t;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLimit = 88.0f;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2; the error is at most 3e-9 of exp(r) (weighted least
  // squares).
  static SOLO_ATTN_INLINE float tail(float r) {
    return (((1.3814466741e-3f * r + 8.3687804291e-3f) * r + 4.1668394217e-2f) * r + 1.6666520108e-1f) * r +
           4.9999993412e-1f;
  }
};

template <>
struct Exponential<double> {
  using Bits = uint64_t;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLimit = 708.0;
  static constexpr int kMantissa = 52, kBias = 1023;
  // The high part has 32 bits, so that n times it is exact.
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  // Taylor series; the first omitted term, r^12 / 14!, is 4e-17.
  static SOLO_ATTN_INLINE double tail(double r) {
    double sum = 1.0 / 6227020800.0;
    sum = sum * r + 1.0 / 479001600.0;
    sum = sum * r + 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    return sum * r + 0.5;
  }
};

template <class T>
SOLO_ATTN_INLINE T sigmoid(T z) {
  using E = Exponential<T>;
  using Bits = typename E::Bits;
  T x = -z;
  x = x > E::kLimit ? E::kLimit : x;
  x = x < -E::kLimit ? -E::kLimit : x;
  const T shifted = x * T(1.4426950408889634) + E::kRound;
  const T n = shifted - E::kRound;
  const T r = (x - n * E::kLn2High) - n * E::kLn2Low;
  const T round = E::kRound;
  Bits power, zero;
  std::memcpy(&power, &shifted, sizeof(T));
  std::memcpy(&zero, &round, sizeof(T));
  power = (power - zero + E::kBias) << E::kMantissa;
  T scale;
  std::memcpy(&scale, &power, sizeof(T));
  const T exponential = (E::tail(r) * r * r + r + 1) * scale;
  const T result = 1 / (1 + exponential);
  return z < -E::kLimit ? T(0) : result;
}

}  // namespace solo_attn
