// The masks that a suppression keeps, in the order of `index`: the op matrix_nms_take.
//
// Bytes: H W of each mask are read, and as many written. The new memory takes longer than the copy. A large
// result is in pages that the system has cleared (common/fresh.h); there only lines with a set pixel are
// written, which are few, since most of most masks is empty.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/fresh.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace solo_attn::matrix_nms {
namespace {

constexpr int64_t kLine = 64;        // bytes
constexpr int64_t kPart = 16 << 10;  // bytes of a mask that a thread takes at a time

struct Copy {
  // `blank`: whether `to` is all zero.
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const uint8_t* from, uint8_t* to, int64_t bytes, bool blank) {
    if (!blank) {
      std::memcpy(to, from, bytes);
      return;
    }
    for (int64_t i = 0; i < bytes; i += kLine) {
      const int64_t count = std::min(kLine, bytes - i);
      uint64_t words[kLine / 8] = {}, any = 0;
      std::memcpy(words, from + i, count);
      for (const uint64_t word : words) any |= word;
      if (any != 0) std::memcpy(to + i, words, count);
    }
  }
};

Tensor matrix_nms_take_cpu(const Tensor& masks, const Tensor& index) {
  check(masks.dim() == 3 && masks.scalar_type() == ScalarType::Bool,
        "matrix_nms_take: expected bool masks of shape ", "[n, H, W], got ", described(masks));
  check(index.dim() == 1 && index.scalar_type() == ScalarType::Long && index.is_cpu(),
        "matrix_nms_take: expected index of shape [k], int64 on cpu, got ", described(index));
  const Tensor source = torch::stable::contiguous(masks), order = torch::stable::contiguous(index);
  const int64_t count = index.size(0), height = masks.size(1), width = masks.size(2), bytes = height * width;
  const int64_t* mask = order.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < count; ++k) {
    check(mask[k] >= 0 && mask[k] < masks.size(0), "matrix_nms_take: expected index in 0..",
          masks.size(0) - 1, ", got ", mask[k]);
  }
  const std::optional<Tensor> blank = blank_masks(masks, count, height, width);
  Tensor out = blank ? *blank : fresh(masks, {count, height, width});
  const auto* from = static_cast<const uint8_t*>(source.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t parts = (bytes + kPart - 1) / kPart;
  parallel_for(count * parts, std::min(bytes, kPart) / 16, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t k = item / parts, begin = item % parts * kPart;
      call<Copy>(from + mask[k] * bytes + begin, to + k * bytes + begin, std::min(kPart, bytes - begin),
                 blank.has_value());
    }
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::matrix_nms

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("matrix_nms_take", TORCH_BOX(&solo_attn::matrix_nms::matrix_nms_take_cpu));
}
