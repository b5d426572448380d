#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/bit_rows.h"
#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/parallel.h"
#include "mask_iou.h"

namespace solo_attn::mask_iou {
namespace {

// Masks that are compared with one other mask while that one is in the cache.
constexpr int64_t kTile = 8;

// Computes rows [begin, end) of the result; if `mirrored` (a set of masks with itself), those from column
// `begin` on and their mirror image.
struct Rows {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const BitRow* masks, const BitRow* others, int64_t begin, int64_t end,
                                   int64_t width, bool mirrored, float* out) {
    for (int64_t j = mirrored ? begin : 0; j < width; ++j) {
      const BitRow b = others[j];
      for (int64_t i = begin; i < end; ++i) {
        const BitRow a = masks[i];
        const int64_t both = intersection<isa>(a, b);
        const float found = both == 0 ? 0 : iou<float>(both, a.area, b.area);
        out[i * width + j] = found;
        if (mirrored) out[j * width + i] = found;
      }
    }
  }
};

void check_masks(const char* name, const Tensor& masks) {
  check(masks.dim() == 2, "mask_iou: expected ", name, " of shape [n, pixels] or [n, words], got ",
        shape_of(masks));
  check(mask_dtype(masks), "mask_iou: expected ", name, " of dtype bool, uint8 or int64, got ",
        dtype_name(masks));
  check(masks.is_cpu(), "mask_iou: expected ", name, " on the CPU, got ", device_name(masks));
}

Tensor one_run_a_row(const Tensor& x) { return x.stride(1) == 1 ? x : torch::stable::contiguous(x); }

Tensor mask_iou_cpu(const Tensor& masks, const std::optional<Tensor>& others) {
  check_masks("masks", masks);
  if (others.has_value()) {
    check_masks("others", *others);
    check(words_of(*others) == words_of(masks), "mask_iou: expected others as large as masks, ",
          words_of(masks), " words of 64 pixels, got ", words_of(*others));
  }
  const bool mirrored = !others.has_value();
  // The packed masks must live as long as the rows, which point into them.
  const Tensor masks_in = one_run_a_row(masks), others_in = mirrored ? masks_in : one_run_a_row(*others);
  const auto in_order = [](int64_t j) { return j; };
  Scratch<uint64_t> store, other_store;
  const std::vector<BitRow> rows = read_rows(masks_in, store, in_order);
  std::vector<BitRow> more;
  if (!mirrored) more = read_rows(others_in, other_store, in_order);
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t width = mirrored ? count : static_cast<int64_t>(more.size());
  Tensor out = torch::stable::new_empty(masks, {count, width}, ScalarType::Float);
  auto* found = out.mutable_data_ptr<float>();
  const int64_t tiles = (count + kTile - 1) / kTile;
  parallel_for(tiles, kTile * 20 * width, [&](int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) {
      const int64_t begin = kTile * (mirrored ? folded(k, tiles) : k);
      call<Rows>(rows.data(), mirrored ? rows.data() : more.data(), begin, std::min(begin + kTile, count),
                 width, mirrored, found);
    }
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::mask_iou

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("mask_iou", TORCH_BOX(&solo_attn::mask_iou::mask_iou_cpu));
}
