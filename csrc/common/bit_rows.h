// Reads masks once: their bits, the range of words that are not 0, and their areas.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bits.h"
#include "dtypes.h"
#include "parallel.h"
#include "scratch.h"

namespace solo_attn {

// A mask's bits; no bit is set outside of the words [first, last).
struct BitRow {
  const uint64_t* words;
  int64_t first;
  int64_t last;
  int64_t area;
};

struct PackRow {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const uint8_t* bytes, int64_t pixels, uint64_t* words) {
    pack_row<isa>(bytes, pixels, words);
  }
};

struct MeasureRow {
  template <Isa isa>
  static SOLO_ATTN_INLINE BitRow run(const uint64_t* words, int64_t count) {
    BitRow row{words, 0, count, 0};
    // Eight words at a time: most words of most masks are 0, and most of the time is spent on them.
    while (row.last - row.first >= 8 && none(words + row.first)) row.first += 8;
    while (row.last - row.first >= 8 && none(words + row.last - 8)) row.last -= 8;
    for (int64_t w = row.first; w < row.last; ++w) row.area += popcount<isa>(words[w]);
    return row;
  }

  static SOLO_ATTN_INLINE bool none(const uint64_t* w) {
    return (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) == 0;
  }
};

// The number of pixels that both masks have, from the words that both have.
template <Isa isa>
SOLO_ATTN_INLINE int64_t intersection(const BitRow& a, const BitRow& b) {
  const int64_t last = std::min(a.last, b.last);
  int64_t both = 0;
  for (int64_t w = std::max(a.first, b.first); w < last; ++w) {
    both += popcount<isa>(a.words[w] & b.words[w]);
  }
  return both;
}

// The number of words of a mask of `masks`: [n, pixels], or [n, words] (int64).
inline int64_t words_of(const Tensor& masks) {
  return masks.scalar_type() == ScalarType::Long ? masks.size(1) : (masks.size(1) + 63) / 64;
}

// Reads each mask once; rows may be equal or far apart in memory, but each must be contiguous. Row j is mask
// place(j); a row whose place is -1 is not read and has no pixel. `store` owns the words that had to be
// packed.
template <class Place>
std::vector<BitRow> read_rows(const Tensor& masks, Scratch<uint64_t>& store, const Place& place) {
  const int64_t count = masks.size(0), width = masks.size(1), stride = masks.stride(0);
  const bool packed = masks.scalar_type() == ScalarType::Long;
  const int64_t words = words_of(masks);
  if (!packed) store = scratch<uint64_t>(count * words);
  const void* data = masks.const_data_ptr();
  std::vector<BitRow> rows(count);
  parallel_for(count, packed ? words : width / 16, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t mask = place(j);
      if (mask < 0) continue;
      const int64_t offset = mask * stride;
      const uint64_t* row = static_cast<const uint64_t*>(data) + offset;
      if (!packed) {
        uint64_t* fresh = store.get() + j * words;
        call<PackRow>(static_cast<const uint8_t*>(data) + offset, width, fresh);
        row = fresh;
      }
      rows[j] = call<MeasureRow>(row, words);
    }
  });
  return rows;
}

// The k-th of count items, alternately from the front and from the end: this balances threads that each take
// a range of k, where the cost of an item grows with its index.
inline int64_t folded(int64_t k, int64_t count) { return k % 2 == 0 ? k / 2 : count - 1 - k / 2; }

}  // namespace solo_attn
