// Matrix NMS (spec 3): the maths that every implementation shares.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace solo_attn::matrix_nms {

// Rounded from double, as the reference does. Only for masks that meet: their union is not 0.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T iou(int64_t both, int64_t area, int64_t other) {
  return static_cast<T>(static_cast<double>(both) / static_cast<double>(area + other - both));
}

// decay_j = finish(min over i of bind(d_ij, c_i)), the min starting at neutral().
// An overlap of 0 never binds, so pairs that do not meet may be left out.

// min exp(sigma (c^2 - d^2)) = exp(sigma min (c^2 - d^2)): one exponential for each mask, not for each pair.
template <class T>
struct Gaussian {
  T sigma;

  SOLO_ATTN_HOST_DEVICE static T neutral() { return 0; }
  SOLO_ATTN_HOST_DEVICE static T bind(T overlap, T worst) { return worst * worst - overlap * overlap; }
  // Not exp(sigma * 0): a sigma that is infinite in T would make that NaN.
  SOLO_ATTN_HOST_DEVICE T finish(T least) const { return least < 0 ? std::exp(sigma * least) : T(1); }
};

template <class T>
struct Linear {
  SOLO_ATTN_HOST_DEVICE static T neutral() { return 1; }
  // A mask with a twin before it (c_i = 1) binds nobody: its twin does.
  SOLO_ATTN_HOST_DEVICE static T bind(T overlap, T worst) {
    return worst < 1 ? (1 - overlap) / (1 - worst) : T(1);
  }
  SOLO_ATTN_HOST_DEVICE T finish(T least) const { return least; }
};

// A score that is decayed to nothing is 0, also where it was infinite.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T decayed_score(T score, T decay) {
  return decay == 0 && std::isinf(score) ? T(0) : score * decay;
}

}  // namespace solo_attn::matrix_nms
