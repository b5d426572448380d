// Masks in bytes to masks in bits and back: the ops mask_bits_pack and mask_bits_unpack.
//
// Bytes of one mask of P pixels: P read and P / 8 written, and the other way round; both take as long as
// that.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "../common/bit_rows.h"
#include "../common/bits.h"
#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/large_results.h"
#include "../common/new_pages.h"
#include "../common/parallel.h"

namespace solo_attn::mask_bits {
namespace {

constexpr int64_t kWord = 64;
constexpr int64_t kPart = 256;  // words of a mask that a thread expands at a time

// Which masks are taken, in order: those of an index, or all.
class Taken {
 public:
  Taken(const char* op, const std::optional<Tensor>& index, int64_t masks) : count_(masks) {
    if (!index) return;
    check(index->dim() == 1 && index->scalar_type() == ScalarType::Long && index->is_cpu(), op,
          ": expected index of shape [k], int64 on cpu, got ", described(*index));
    index_ = torch::stable::contiguous(*index);
    count_ = index->size(0);
    const int64_t* mask = index_->const_data_ptr<int64_t>();
    for (int64_t k = 0; k < count_; ++k) {
      check(mask[k] >= 0 && mask[k] < masks, op, ": expected index in 0..", masks - 1, ", got ", mask[k]);
    }
  }

  int64_t count() const { return count_; }
  int64_t operator[](int64_t k) const { return index_ ? index_->const_data_ptr<int64_t>()[k] : k; }

 private:
  std::optional<Tensor> index_;
  int64_t count_;
};

std::tuple<Tensor, Tensor> mask_bits_pack_cpu(const Tensor& masks, const std::optional<Tensor>& index) {
  const char* op = "mask_bits_pack";
  const bool bytes = masks.scalar_type() == ScalarType::Bool || masks.scalar_type() == ScalarType::Byte;
  check(masks.dim() == 2 && bytes, op, ": expected masks of shape [n, pixels], bool or uint8, got ",
        described(masks));
  const Taken taken(op, index, masks.size(0));
  const Tensor in = masks.stride(1) == 1 ? masks : torch::stable::contiguous(masks);
  const int64_t pixels = in.size(1), stride = in.stride(0), words = (pixels + kWord - 1) / kWord;
  Tensor out = torch::stable::new_empty(in, {taken.count(), words}, ScalarType::Long);
  Tensor areas = torch::stable::new_empty(in, {taken.count()}, ScalarType::Long);
  const auto* from = static_cast<const uint8_t*>(in.const_data_ptr());
  auto* to = static_cast<uint64_t*>(out.mutable_data_ptr());
  auto* area = areas.mutable_data_ptr<int64_t>();
  parallel_for(taken.count(), pixels / 16, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      uint64_t* row = to + k * words;
      call<PackRow>(from + taken[k] * stride, pixels, row);
      area[k] = call<MeasureRow>(static_cast<const uint64_t*>(row), words).area;
    }
  });
  return {out, areas};
}

struct Expand {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const uint64_t* words, int64_t pixels, uint8_t* out) {
    for (int64_t i = 0; i < pixels; i += kWord, ++words) {
      if (pixels - i >= kWord) {
        unpack64<isa>(*words, out + i);
      } else {
        uint8_t last[kWord];
        unpack64<isa>(*words, last);
        std::memcpy(out + i, last, pixels - i);
      }
    }
  }
};

Tensor mask_bits_unpack_cpu(const Tensor& words, const std::optional<Tensor>& index, int64_t pixels) {
  const char* op = "mask_bits_unpack";
  const int64_t needed = (pixels + kWord - 1) / kWord;
  check(pixels >= 0 && words.dim() == 2 && words.scalar_type() == ScalarType::Long && words.size(1) == needed,
        op, ": expected words of shape [n, ", needed, "], int64, for masks of ", pixels, " pixels, got ",
        described(words));
  const Taken taken(op, index, words.size(0));
  const Tensor in = words.stride(1) == 1 ? words : torch::stable::contiguous(words);
  Tensor out = new_result(in, {taken.count(), pixels}, ScalarType::Bool);
  NewPages pages(out.mutable_data_ptr(), bytes_of(out));
  const auto* from = static_cast<const uint64_t*>(in.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t stride = in.stride(0), parts = (needed + kPart - 1) / kPart;
  parallel_for(taken.count() * parts, std::min(pixels, kPart * kWord) / 16, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t k = item / parts, part = item % parts * kPart, begin = part * kWord;
      const uint64_t* words_here = from + taken[k] * stride + part;
      const int64_t here = std::min(pixels - begin, kPart * kWord);
      pages.reach(to + k * pixels + begin, here);
      call<Expand>(words_here, here, to + k * pixels + begin);
    }
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::mask_bits

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("mask_bits_pack", TORCH_BOX(&solo_attn::mask_bits::mask_bits_pack_cpu));
  m.impl("mask_bits_unpack", TORCH_BOX(&solo_attn::mask_bits::mask_bits_unpack_cpu));
}
