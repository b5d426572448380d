// Dice loss (docs/method.md, "Losses" step 2): the arithmetic that every implementation shares.
#pragma once

#include "../common/host_device.h"

namespace solo_attn::dice_loss {

// Sums over the pixels of one row: p t, p^2 and t^2.
template <class T>
struct Sums {
  T overlap;
  T squares;
  T pixels;

  SOLO_ATTN_HOST_DEVICE T total(T eps) const { return (squares + eps) + (pixels + eps); }
};

template <class T>
SOLO_ATTN_HOST_DEVICE inline T loss(T overlap, T total) {
  return 1 - 2 * overlap / total;
}

// dL/dlogit of a pixel: (a p - b t) p (1 - p), with a and b of its row.
template <class T>
struct Slope {
  T a;
  T b;

  SOLO_ATTN_HOST_DEVICE static Slope of(T grad, T overlap, T total) {
    return {grad * (4 * overlap / (total * total)), grad * (2 / total)};
  }
  SOLO_ATTN_HOST_DEVICE T operator()(T p, bool truth) const {
    return (a * p - (truth ? b : T(0))) * p * (1 - p);
  }
};

}  // namespace solo_attn::dice_loss
