// What the CUDA kernels do with a pixel: read whether it is the object's, and the slope of its logit.
#pragma once

#include "../common/probability.cuh"
#include "dice_loss.h"

namespace solo_attn::dice_loss {

constexpr int kColumns = 4;

// The targets in a thread's columns, row by row: the next four bytes are on their way. kAligned: they are one
// word in every row.
template <bool kAligned>
class TargetRows {
 public:
  // `from`: the thread's first pixel of the first of `count` rows; `left`: columns from there on.
  __device__ __forceinline__ TargetRows(const uint8_t* from, int width, int left, int count)
      : from_(from), width_(width), left_(left), count_(count), next_(0) {
    ask();
  }
  // Bit 8 j + 7 tells whether column j of the row is the object's; no other is set.
  __device__ __forceinline__ uint32_t take() {
    const uint32_t word = next_;
    from_ += width_;
    --count_;
    ask();
    return (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u;
  }

 private:
  __device__ __forceinline__ void ask() {
    if (count_ <= 0) return;
    if constexpr (kAligned) {
      if (left_ > 0) next_ = *reinterpret_cast<const uint32_t*>(from_);
    } else {
      next_ = 0;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (j < left_) next_ |= static_cast<uint32_t>(from_[j]) << 8 * j;
      }
    }
  }

  const uint8_t* from_;
  int width_, left_, count_;
  uint32_t next_;
};

__device__ __forceinline__ bool truth(uint32_t word, int j) { return (word >> (8 * j + 7) & 1) != 0; }

// The gradient of the logits in a thread's columns, row by row.
template <class S, bool kAligned>
class Slopes {
 public:
  using T = accumulator_t<S>;

  __device__ __forceinline__ Slopes(const CellMaps<S>& maps, int64_t cell, const int (&columns)[kColumns],
                                    const TargetRows<kAligned>& rows, const Slope<T>& slope)
      : walk_(maps, cell, columns), rows_(rows), slope_(slope) {}
  __device__ __forceinline__ void operator()(int, const RowTaps<T>& row, T (&out)[kColumns]) {
    walk_.logits(row, out);
    const uint32_t word = rows_.take();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out[j] = slope_(logistic(out[j]), truth(word, j));
  }

 private:
  CellWalk<S, kColumns> walk_;
  TargetRows<kAligned> rows_;
  Slope<T> slope_;
};

}  // namespace solo_attn::dice_loss
