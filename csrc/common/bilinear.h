// Bilinear resizing along one axis, as F.interpolate(align_corners=False) without antialiasing does it.
//
// Output d samples the input at (d + 1/2) in / out - 1/2 = ((2 d + 1) in - out) / (2 out), clamped to
// [0, in - 1]. Computed in integers, so that every device finds the same taps, also where a sample position
// is exactly that of an input.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace solo_attn {

// out[d] = (1 - weight) in[low] + weight in[high]. high is low + 1, except on the last input: there it is
// low, and weight is 0.
template <class T>
struct Tap {
  int64_t low;
  int64_t high;
  T weight;
};

template <class T>
SOLO_ATTN_HOST_DEVICE inline Tap<T> bilinear_tap(int64_t d, int64_t in, int64_t out) {
  const int64_t place = (2 * d + 1) * in - out;  // in units of 1 / (2 out)
  if (place <= 0) return {0, in > 1 ? 1 : 0, T(0)};
  const int64_t low = place / (2 * out);
  if (low >= in - 1) return {in - 1, in - 1, T(0)};
  return {low, low + 1,
          static_cast<T>(static_cast<double>(place % (2 * out)) / static_cast<double>(2 * out))};
}

// bilinear_tap of d = 0, 1, 2, ... in turn, without a division of integers for each. `out` may be 0.
template <class T>
class TapWalk {
 public:
  TapWalk(int64_t in, int64_t out)
      : in_(in),
        unit_(out == 0 ? 1 : 2 * out),
        step_(2 * in / unit_),
        step_rest_(2 * in % unit_),
        low_(0),
        rest_(in - out) {
    while (rest_ < 0) {
      rest_ += unit_;
      --low_;
    }
    low_ += rest_ / unit_;
    rest_ %= unit_;
  }

  Tap<T> next() {
    const int64_t low = low_, rest = rest_;
    low_ += step_;
    rest_ += step_rest_;
    if (rest_ >= unit_) {
      rest_ -= unit_;
      ++low_;
    }
    if (low < 0) return {0, in_ > 1 ? 1 : 0, T(0)};
    if (low >= in_ - 1) return {in_ - 1, in_ - 1, T(0)};
    return {low, low + 1, static_cast<T>(static_cast<double>(rest) / static_cast<double>(unit_))};
  }

 private:
  int64_t in_, unit_, step_, step_rest_;
  int64_t low_, rest_;  // (2 d + 1) in - out = low 2 out + rest
};

// The sizes of one axis, for taps computed without a division on a GPU; in < 2^27, out < 2^29. `unit` is
// 1 / (2 out).
struct TapAxis {
  int in;
  int out;
  double unit;

  static TapAxis of(int64_t in, int64_t out) {
    return {static_cast<int>(in), static_cast<int>(out), 1 / (2.0 * static_cast<double>(out))};
  }
};

// A tap of TapAxis. In float64 its weight may differ from bilinear_tap's in the last bit.
template <class T>
struct AxisTap {
  int low;
  T weight;

  // low where the weight is 0, so that nothing beyond the input is read.
  SOLO_ATTN_HOST_DEVICE int high() const { return weight > 0 ? low + 1 : low; }
};

template <class T>
SOLO_ATTN_HOST_DEVICE inline AxisTap<T> axis_tap(const TapAxis& axis, int d) {
  const int64_t unit = 2 * static_cast<int64_t>(axis.out);
  const int64_t place = (2 * static_cast<int64_t>(d) + 1) * axis.in - axis.out;
  if (place <= 0) return {0, T(0)};
  int low = static_cast<int>(static_cast<double>(place) * axis.unit);  // off by one at most
  int64_t rest = place - low * unit;
  if (rest < 0) {
    --low;
    rest += unit;
  } else if (rest >= unit) {
    ++low;
    rest -= unit;
  }
  if (low >= axis.in - 1) return {axis.in - 1, T(0)};
  return {low, static_cast<T>(static_cast<double>(rest) * axis.unit)};
}

// A tap without a weight of 0, by which an infinite or NaN neighbour would give NaN: where a sample position
// is that of an input, this input is both taps, with weights of 1/2. low is place >> 1, high is
// (place + 1) >> 1.
template <class T>
struct PairTap {
  int place;
  T weight;

  SOLO_ATTN_HOST_DEVICE bool between() const { return (place & 1) != 0; }
};

template <class T>
SOLO_ATTN_HOST_DEVICE inline PairTap<T> pair_tap(const TapAxis& axis, int d) {
  const AxisTap<T> tap = axis_tap<T>(axis, d);
  if (tap.weight == 0) return {2 * tap.low, T(0.5)};
  return {2 * tap.low + 1, tap.weight};
}

// The first output that is sampled at input i or after it. In the backward pass, input i has a weight in the
// outputs [bilinear_first(i - 1, ..), bilinear_first(i + 1, ..)).
SOLO_ATTN_HOST_DEVICE inline int64_t bilinear_first(int64_t i, int64_t in, int64_t out) {
  if (i <= 0) return 0;
  if (i >= in) return out;
  const int64_t least = (2 * i + 1) * out - in;  // (2 d + 1) in - out >= 2 out i, solved for 2 in d
  return least <= 0 ? 0 : (least + 2 * in - 1) / (2 * in);
}

// The weight of input i in the output with this tap.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T bilinear_part(int64_t i, const Tap<T>& tap) {
  if (tap.low == i) return T(1) - tap.weight;
  return tap.high == i ? tap.weight : T(0);
}

}  // namespace solo_attn
