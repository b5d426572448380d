#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "../common/bit_rows.h"
#include "../common/check.h"
#include "../common/dtypes.h"
#include "../common/parallel.h"
#include "matrix_nms.h"
#include "matrix_nms_arguments.h"

namespace solo_attn::matrix_nms {
namespace {

// The number of overlaps that are held at a time, or one row of them if that is longer, so that memory does
// not grow with n^2.
constexpr int64_t kHeld = 1 << 20;
// Masks that are compared with one earlier mask while that one is in the cache.
constexpr int64_t kTile = 8;

// Masks are sorted by label, then by score; a mask's group is the index of the first mask with its label.
template <class T>
struct Pairs {
  const BitRow* rows;
  const int64_t* group;
  const int64_t* place;  // of d_ij with i = group: d_ij is overlap[place[j] + i - group[j]]
  T* overlap;
  T* worst;  // c_j
};

// d_ij and c_j for j in [begin, end).
template <class T>
struct Overlaps {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Pairs<T> pairs, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) pairs.worst[j] = 0;
    for (int64_t i = pairs.group[begin]; i < end; ++i) {
      const BitRow a = pairs.rows[i];
      for (int64_t j = std::max(i + 1, begin); j < end && pairs.group[j] <= i; ++j) {
        const BitRow b = pairs.rows[j];
        const int64_t both = intersection<isa>(a, b);
        const T overlap = both == 0 ? T(0) : iou<T>(both, a.area, b.area);
        pairs.overlap[pairs.place[j] + i - pairs.group[j]] = overlap;
        pairs.worst[j] = std::max(pairs.worst[j], overlap);
      }
    }
  }
};

// decay_j for one j, after the c_i of the masks before it.
template <class T, class Kernel>
struct Decay {
  template <Isa isa>
  static SOLO_ATTN_INLINE T run(Pairs<T> pairs, Kernel kernel, int64_t j) {
    const int64_t group = pairs.group[j];
    const T* overlap = pairs.overlap + pairs.place[j];
    const T* worst = pairs.worst + group;
    T least = Kernel::neutral();
    for (int64_t i = 0; i < j - group; ++i) least = std::min(least, Kernel::bind(overlap[i], worst[i]));
    return kernel.finish(least);
  }
};

// Indices sorted by label, then by score, the best first.
template <class T>
std::vector<int64_t> by_label_best_first(const std::vector<T>& scores, const int64_t* labels) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (labels[a] != labels[b]) return labels[a] < labels[b];
    return better(scores[a], a, scores[b], b);
  });
  return order;
}

std::vector<int64_t> groups(const std::vector<int64_t>& order, const int64_t* labels) {
  std::vector<int64_t> group(order.size());
  for (size_t j = 1; j < order.size(); ++j) {
    group[j] = labels[order[j]] == labels[order[j - 1]] ? group[j - 1] : static_cast<int64_t>(j);
  }
  return group;
}

// A mask that is the only one of its label overlaps nothing, and is not read.
std::vector<BitRow> measure(const Tensor& masks, const std::vector<int64_t>& order,
                            const std::vector<int64_t>& group, Scratch<uint64_t>& store) {
  const int64_t count = masks.size(0);
  return read_rows(masks, store, [&](int64_t j) {
    const bool alone = group[j] == j && (j + 1 == count || group[j + 1] != j);
    return alone ? -1 : order[j];
  });
}

// The decays, in the order of `rows`.
template <class T, class Kernel>
std::vector<T> decays(const std::vector<BitRow>& rows, const std::vector<int64_t>& group, Kernel kernel) {
  const auto count = static_cast<int64_t>(rows.size());
  std::vector<int64_t> place(count);
  std::vector<T> worst(count), decay(count);
  Scratch<T> overlap;
  int64_t room = 0;
  // Blocks of rows, in order: a decay needs the c_i of all masks before it, also those of its own block.
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    int64_t held = 0;
    do {
      place[end] = held;
      held += end - group[end];
      ++end;
    } while (end < count && held + end - group[end] <= kHeld);
    if (held > room) overlap = scratch<T>(room = std::max(held, std::min(kHeld, count * (count - 1) / 2)));
    const Pairs<T> pairs{rows.data(), group.data(), place.data(), overlap.get(), worst.data()};
    const int64_t tiles = (end - begin + kTile - 1) / kTile;
    parallel_for(tiles, 20 * held / tiles, [&](int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) {
        const int64_t tile = begin + kTile * folded(k, tiles);
        call<Overlaps<T>>(pairs, tile, std::min(tile + kTile, end));
      }
    });
    parallel_for(end - begin, held / (end - begin), [&](int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) {
        const int64_t j = begin + folded(k, end - begin);
        decay[j] = call<Decay<T, Kernel>>(pairs, kernel, j);
      }
    });
  }
  return decay;
}

std::tuple<Tensor, Tensor> matrix_nms_cpu(const Tensor& masks, const Tensor& labels, const Tensor& scores,
                                          const std::string& kernel, double sigma) {
  check_arguments(masks, labels, scores, kernel);
  check(masks.is_cpu() && labels.is_cpu(), "matrix_nms: expected masks and labels on cpu, as scores, got ",
        device_name(masks), " and ", device_name(labels));
  const int64_t count = scores.size(0);
  // Rows may be equal or far apart in memory, but each must be contiguous.
  const Tensor rows_in = masks.stride(1) == 1 ? masks : torch::stable::contiguous(masks);
  const Tensor labels_in = torch::stable::contiguous(labels), scores_in = torch::stable::contiguous(scores);
  const auto* label = labels_in.const_data_ptr<int64_t>();
  Tensor decayed = torch::stable::new_empty(scores_in, scores.sizes());
  Tensor decay = torch::stable::new_empty(scores_in, scores.sizes(), accumulator_dtype(scores.scalar_type()));
  dispatch_float("matrix_nms", scores.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const S* score = scores_in.const_data_ptr<S>();
    const std::vector<T> wide(score, score + count);
    const std::vector<int64_t> order = by_label_best_first(wide, label);
    const std::vector<int64_t> group = groups(order, label);
    Scratch<uint64_t> store;
    const std::vector<BitRow> rows = measure(rows_in, order, group, store);
    const std::vector<T> found = kernel == "linear"
                                     ? decays<T>(rows, group, Linear<T>{})
                                     : decays<T>(rows, group, Gaussian<T>{static_cast<T>(sigma)});
    S* out = decayed.mutable_data_ptr<S>();
    T* factor = decay.mutable_data_ptr<T>();
    for (int64_t j = 0; j < count; ++j) {
      factor[order[j]] = found[j];
      out[order[j]] = static_cast<S>(decayed_score(wide[order[j]], found[j]));
    }
  });
  return {decayed, decay};
}

}  // namespace
}  // namespace solo_attn::matrix_nms

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("matrix_nms", TORCH_BOX(&solo_attn::matrix_nms::matrix_nms_cpu));
}
