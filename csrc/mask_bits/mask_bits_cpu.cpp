// Bits of K cells at out_size H x W, from coarse logits of h x w (and attention of S x S), upsampled to
// `size`.
//
// Bytes per cell: 4 h w + 4 S^2 are read once for its bounds and, where a pixel may be above the threshold,
// once more from the cache; H W / 8 are written. Flops: two per coarse logit for the bounds; then, only in
// the box that may hold a set pixel, an interpolation in x per row, an interpolation and a sigmoid (about 30)
// per pixel of `size`, an interpolation, a comparison and a sum (7) per pixel of out_size. The lower bound of
// a small mask is the time to read 4 h w bytes; that of a full one at 200 x 336 is, as for dice_loss, about 2
// cycles for 16 sigmoids.
//
// Of the probability map two rows are kept, and one row of the probabilities above the threshold.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/bits.h"
#include "../common/cells.h"
#include "../common/dtypes.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "../common/scratch.h"
#include "mask_bits.h"

namespace solo_attn::mask_bits {
namespace {

constexpr int64_t kWord = 64;

// The largest number of rows of out_size that are computed at a time. The last rows of a block are upsampled
// in x again for the next one. Blocks end at the end of a word, and each row has a sum of its own, so results
// depend neither on the blocks nor on the number of threads.
constexpr int64_t kBlock = 64;

// In a cache line of its own: threads write the areas of adjacent blocks at the same time.
struct alignas(kLine) Block {
  int64_t cell;
  Box box;
  int64_t area;
  int64_t first;  // index of its first row among the sums
};

// Rows of a block: fewer where there are few masks, so that no thread is idle while another one works on the
// last large block.
int64_t block_rows(int64_t rows, int64_t width) {
  const int64_t unit = kWord / std::gcd(width, kWord), threads = thread_count();
  const int64_t wanted = threads == 1 ? kBlock : std::clamp<int64_t>(rows / (4 * threads), 1, kBlock);
  return (wanted + unit - 1) / unit * unit;
}

template <class S, class T>
struct Threshold {
  // `words` must be 0. `inside` and `bytes` have room for a row, rounded up to whole words of pixels.
  template <Isa isa>
  static SOLO_ATTN_INLINE int64_t run(Probabilities<S, T> map, T threshold, T* __restrict inside,
                                      uint8_t* __restrict bytes, uint64_t* words, T* sums) {
    const int64_t width = map.columns.out, begin = map.wanted_x.begin;
    const int64_t count = map.wanted_x.end - begin, last = (count + kWord - 1) / kWord * kWord;
    for (int64_t x = count; x < last; ++x) {
      inside[x] = 0;
      bytes[x] = 0;
    }
    int64_t area = 0;
    for (int64_t y = map.wanted_y.begin; y < map.wanted_y.end; ++y, ++sums) {
      const T weight = map.rows.weight[y];
      const T* __restrict above = map.template row<isa>(map.rows.low[y]) + begin;
      const T* __restrict below = map.template row<isa>(map.rows.high[y]) + begin;
      for (int64_t x = 0; x < count; ++x) {
        const T p = lerp(above[x], below[x], weight);
        inside[x] = p > threshold ? p : T(0);
        bytes[x] = p > threshold;
      }
      const int64_t here = append<isa>(bytes, last, y * width + begin, words);
      area += here;
      *sums = here == 0 ? T(0) : add<isa>(inside, last);
    }
    return area;
  }

  // Stores `bytes` as bits, from bit `place` on. Returns the number of set bits.
  template <Isa isa>
  static SOLO_ATTN_INLINE int64_t append(const uint8_t* bytes, int64_t count, int64_t place,
                                         uint64_t* words) {
    int64_t area = 0;
    for (int64_t x = 0; x < count; x += kWord) {
      const uint64_t word = pack64<isa>(bytes + x);
      if (word == 0) continue;
      area += popcount<isa>(word);
      uint64_t* to = words + (place + x) / kWord;
      const int64_t shift = (place + x) % kWord;
      to[0] |= word << shift;
      const uint64_t rest = shift == 0 ? 0 : word >> (kWord - shift);
      if (rest != 0) to[1] |= rest;  // otherwise to[1] may be past the end
    }
    return area;
  }

  template <Isa isa>
  static SOLO_ATTN_INLINE T add(const T* values, int64_t count) {
    typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T))));
    Lanes lanes = {};
    for (int64_t x = 0; x < count; x += kLanes) {
      Lanes value;
      std::memcpy(&value, values + x, sizeof(value));
      lanes += value;
    }
    T sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
  }
};

// What the op returns, of cell k.
template <class T>
struct Results {
  uint64_t* bits;
  int64_t* areas;
  T* means;
  int64_t words;

  void clear(int64_t k) const { std::fill_n(bits + k * words, words, 0); }
  void set(int64_t k, int64_t area, const T* sums, int64_t rows) const {
    double sum = 0;
    for (int64_t y = 0; y < rows; ++y) sum += sums[y];
    areas[k] = area;
    means[k] = maskness<T>(sum, area);
  }
};

// The memory of a thread: a row of what is above the threshold, and the cells' own.
template <class T>
struct Room {
  template <class S>
  Room(const Cells<S, T>& cells, int64_t width)
      : line((width + kWord - 1) / kWord * kWord),
        store(scratch<T>(line + cells.room())),
        bytes(scratch<uint8_t>(line)) {}

  T* cells() const { return store.get() + line; }

  int64_t line;
  Scratch<T> store;
  Scratch<uint8_t> bytes;
};

// The area in a box, and the sums of its rows.
template <class S, class T>
int64_t threshold_box(const Cells<S, T>& cells, int64_t k, Box box, T threshold, const Room<T>& room,
                      const Results<T>& out, T* sums) {
  if (box.empty()) return 0;
  return call<Threshold<S, T>>(cells.at(k, box, room.cells()), threshold, room.store.get(), room.bytes.get(),
                               out.bits + k * out.words, sums);
}

// Many cells: each is one thread's, while its logits are in the cache.
template <class S, class T>
void each_by_one(const Cells<S, T>& cells, int64_t count, int64_t height, int64_t width, T threshold,
                 const Results<T>& out) {
  parallel_dynamic(count, height * width, [&](const auto& next) {
    const Room<T> room(cells, width);
    const auto sums = scratch<T>(height);
    for (int64_t k = next(); k >= 0; k = next()) {
      out.clear(k);
      const Box box = cells.bounds(k, room.cells());
      const int64_t area = threshold_box(cells, k, box, threshold, room, out, sums.get());
      out.set(k, area, sums.get(), box.y.end - box.y.begin);
    }
  });
}

// Few cells: threads share blocks of their rows.
template <class S, class T>
void by_all(const Cells<S, T>& cells, int64_t count, int64_t cost, int64_t width, T threshold,
            const Results<T>& out) {
  std::vector<Box> boxes(count);
  parallel_dynamic(count, cost, [&](const auto& next) {
    const Room<T> room(cells, width);
    for (int64_t k = next(); k >= 0; k = next()) {
      out.clear(k);
      boxes[k] = cells.bounds(k, room.cells());
    }
  });
  int64_t rows = 0, pixels = 0;
  for (const Box& box : boxes) {
    rows += box.y.end - box.y.begin;
    pixels += (box.y.end - box.y.begin) * (box.x.end - box.x.begin);
  }
  const int64_t size_of_block = block_rows(rows, width);
  std::vector<Block> blocks;
  const auto sums = scratch<T>(rows);
  int64_t first = 0;
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t y = boxes[k].y.begin, end; y < boxes[k].y.end; y = end) {
      end = std::min((y / size_of_block + 1) * size_of_block, boxes[k].y.end);
      blocks.push_back({k, {{y, end}, boxes[k].x}, 0, first});
      first += end - y;
    }
  }
  const auto some = static_cast<int64_t>(blocks.size());
  parallel_dynamic(some, pixels / std::max<int64_t>(1, 2 * some), [&](const auto& next) {
    const Room<T> room(cells, width);
    for (int64_t b = next(); b >= 0; b = next()) {
      Block& block = blocks[b];
      block.area =
          threshold_box(cells, block.cell, block.box, threshold, room, out, sums.get() + block.first);
    }
  });
  std::vector<int64_t> areas(count);
  for (const Block& block : blocks) areas[block.cell] += block.area;
  first = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t tall = boxes[k].y.end - boxes[k].y.begin;
    out.set(k, areas[k], sums.get() + first, tall);
    first += tall;
  }
}

std::tuple<Tensor, Tensor, Tensor> mask_bits_cpu(const Tensor& coarse, const std::optional<Tensor>& attention,
                                                 std::vector<int64_t> size, std::vector<int64_t> out_size,
                                                 double threshold) {
  check_cells("mask_bits", coarse, attention);
  check_size("mask_bits", "size", size);
  check_size("mask_bits", "out_size", out_size);
  const int64_t count = coarse.size(0), height = out_size[0], width = out_size[1];
  const int64_t words = (height * width + kWord - 1) / kWord;
  Tensor bits = torch::stable::new_empty(coarse, {count, words}, ScalarType::Long);
  Tensor areas = torch::stable::new_empty(coarse, {count}, ScalarType::Long);
  Tensor means = torch::stable::new_empty(coarse, {count}, accumulator_dtype(coarse.scalar_type()));
  dispatch_float("mask_bits", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Cells<S, T> cells(coarse, attention, size, out_size, threshold);
    const Results<T> out{reinterpret_cast<uint64_t*>(bits.mutable_data_ptr<int64_t>()),
                         areas.mutable_data_ptr<int64_t>(), means.mutable_data_ptr<T>(), words};
    const T limit = static_cast<T>(threshold);
    // Enough that a large one, begun last, does not keep the other threads waiting for long.
    if (count >= 16 * thread_count()) {
      each_by_one(cells, count, height, width, limit, out);
    } else {
      by_all(cells, count, coarse.size(1) * coarse.size(2), width, limit, out);
    }
  });
  return {bits, areas, means};
}

}  // namespace
}  // namespace solo_attn::mask_bits

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("mask_bits", TORCH_BOX(&solo_attn::mask_bits::mask_bits_cpu));
}
