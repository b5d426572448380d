// Matrix NMS (docs/method.md, "Matrix NMS"): the arithmetic that every implementation shares.
#pragma once

#include <cmath>

#include "../common/host_device.h"
#include "../mask_iou/mask_iou.h"

namespace solo_attn::matrix_nms {

using mask_iou::iou;

// Whether mask i, with this score, comes before mask j: the higher score first, then the lower index. NaN
// comes last, so that it suppresses nothing.
template <class T>
SOLO_ATTN_HOST_DEVICE inline bool better(T score, int64_t i, T other, int64_t j) {
  const bool nan = score != score, other_nan = other != other;
  if (nan != other_nan) return other_nan;
  if (!nan && score != other) return score > other;
  return i < j;
}

// decay_j = finish(min over i of bind(d_ij, c_i)), the min starting at neutral().
// An overlap of 0 never attains the minimum, so pairs without overlap may be left out.

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
  // A mask with an identical one before it (c_i = 1) decays no other mask: the earlier one does.
  SOLO_ATTN_HOST_DEVICE static T bind(T overlap, T worst) {
    return worst < 1 ? (1 - overlap) / (1 - worst) : T(1);
  }
  SOLO_ATTN_HOST_DEVICE T finish(T least) const { return least; }
};

// A score with a decay of 0 is 0, even if it was infinite.
template <class T>
SOLO_ATTN_HOST_DEVICE inline T decayed_score(T score, T decay) {
  return decay == 0 && std::isinf(score) ? T(0) : score * decay;
}

}  // namespace solo_attn::matrix_nms
