// What the C++ kernel of the dice loss reads, row by row, and how few masks are divided among threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>

#include "../common/dtypes.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "../common/shared_table.h"

namespace solo_attn::dice_loss {

template <class S, class T>
struct Maps {
  RowPair<S, T> coarse;
  RowPair<S, T> attention;
  const uint8_t* targets;  // [H, W]
};

// The contiguous inputs, the tap tables, and room for one thread's rows.
template <class S, class T>
struct Inputs {
  Tensor coarse, attention, targets;
  bool plain;
  int64_t count, side, h, w, height, width;
  SharedTable<TapTable<T>> rows, columns, attention_rows, attention_columns;

  Inputs(const Tensor& coarse_in, const std::optional<Tensor>& attention_in, const Tensor& targets_in)
      : coarse(torch::stable::contiguous(coarse_in)),
        attention(attention_in ? torch::stable::contiguous(*attention_in) : coarse),
        targets(torch::stable::contiguous(targets_in)),
        plain(!attention_in),
        count(coarse.size(0)),
        side(plain ? 0 : attention.size(1)),
        h(coarse.size(1)),
        w(coarse.size(2)),
        height(targets.size(1)),
        width(targets.size(2)),
        rows(h, height),
        columns(w, width),
        attention_rows(side, side == 0 ? 0 : height),
        attention_columns(side, side == 0 ? 0 : width) {}

  int64_t room() const { return RowPair<S, T>::size(w, width) + RowPair<S, T>::size(side, width); }

  Maps<S, T> at(int64_t k, T* store) const {
    const S* logits = coarse.const_data_ptr<S>() + k * h * w;
    const S* added = plain ? nullptr : attention.const_data_ptr<S>() + k * side * side;
    T* second = store + RowPair<S, T>::size(w, width);
    return {RowPair<S, T>::over(logits, rows.view(), columns.view(), store),
            RowPair<S, T>::over(added, attention_rows.view(), attention_columns.view(), second),
            static_cast<const uint8_t*>(targets.const_data_ptr()) + k * height * width};
  }
};

// Into how many bands of rows a gradient is divided, so that few masks leave no thread idle. Where bands
// meet, both compute the output rows that reach them, so that each sum has its terms in the same order with
// any bands; a band has rows enough for that to be a small part.
inline int64_t bands_of(int64_t count, int64_t coarse, int64_t attention, int64_t height) {
  constexpr int64_t kLeast = 4;
  const int64_t threads = thread_count();
  if (count >= 4 * threads || std::max(coarse, attention) > height) return 1;
  const int64_t rows = attention == 0 ? coarse : attention;
  return std::clamp<int64_t>(rows / kLeast, 1, threads / std::gcd(count, threads));
}

// The output rows that reach the input rows `in`.
inline Range reaching(Range in, int64_t from, int64_t to) {
  if (in.empty()) return {to, 0};
  return {bilinear_first(in.begin - 1, from, to), bilinear_first(in.end, from, to)};
}

}  // namespace solo_attn::dice_loss
