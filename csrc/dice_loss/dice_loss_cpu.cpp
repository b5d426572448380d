// K rows, enlarged from h x w (and S x S) to H x W.
//
// Bytes: 4 h w + 4 S^2 + H W of a row are read; a gradient writes the first two again. Flops: enlarging in x
// is done once for each coarse row (3 h W), the rest for each pixel: two blends in y (8), a sigmoid (about
// 22, one of them a division), sums (6). At 200 x 336 with AVX-512 that is about 35 instructions for 16
// pixels against 1.4 bytes a pixel: it computes, and the floor is about 2 cycles a vector of exponentials and
// divisions each, some 0.15 ms for 1 M pixels and core forward. Backward adds the transposes of both
// enlargements, about as much again.
//
// No map is stored: two enlarged rows of each input, one row of p, and going back two rows of sums.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/bilinear_rows.h"
#include "../common/cells.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/parallel.h"
#include "../common/probability.h"
#include "../common/scratch.h"
#include "../common/shared_table.h"
#include "dice_loss.h"
#include "dice_loss_arguments.h"
#include "dice_loss_rows.h"

namespace solo_attn::dice_loss {
namespace {

// Output rows that are summed at a time: parts of a sum are the same whatever the number of threads. They are
// kept as double, so that a sum of many is rounded once.
constexpr int64_t kBlock = 32;

// The sums over output rows [begin, end).
template <class S, class T>
struct Forward {
  template <Isa isa>
  static SOLO_ATTN_INLINE Sums<double> run(Maps<S, T> maps, T* __restrict p, T* __restrict overlap,
                                           int64_t begin, int64_t end) {
    typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T))));
    const int64_t width = maps.coarse.columns.out, last = padded(width);
    double overlaps = 0, squares = 0;
    int64_t pixels = 0;
    for (int64_t x = width; x < last; ++x) p[x] = overlap[x] = 0;
    for (int64_t y = begin; y < end; ++y) {
      probability_row<isa>(maps.coarse, maps.attention, y, p);
      const uint8_t* __restrict truth = maps.targets + y * width;
      int32_t count = 0;
      for (int64_t x = 0; x < width; ++x) {
        overlap[x] = truth[x] != 0 ? p[x] : T(0);
        count += truth[x] != 0;
      }
      Lanes both = {}, square = {};
      for (int64_t x = 0; x < last; x += kLanes) {
        Lanes a, b;
        std::memcpy(&a, p + x, sizeof(a));
        std::memcpy(&b, overlap + x, sizeof(b));
        square += a * a;
        both += b;
      }
      T row_overlap = 0, row_squares = 0;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        row_overlap += both[lane];
        row_squares += square[lane];
      }
      overlaps += row_overlap;
      squares += row_squares;
      pixels += count;
    }
    return {overlaps, squares, static_cast<double>(pixels)};
  }
};

// The transpose of enlarging in x, as sums over the outputs that each input has a part in: `depth` terms for
// each, [depth, stride]. Where an input has fewer, its last output comes in several shares: terms with a part
// of 0 would make NaN of infinities. `none` are the inputs that have no output at all, as in masks smaller
// than their logits; what is summed for them is not theirs.
template <class T>
struct Transposed {
  const int32_t* place;
  const T* part;
  int64_t depth;
  int64_t stride;
  const int32_t* none;
  int64_t none_count;
};

template <class T>
class TransposedTable {
 public:
  TransposedTable(int64_t in, int64_t out) : stride_(padded(in)) {
    const PartsTable<T> table(in, out);
    const Parts<T> parts = table.view();
    for (int64_t i = 0; i < in; ++i) depth_ = std::max(depth_, parts.count[i]);
    place_ = scratch<int32_t>(depth_ * stride_);
    part_ = scratch<T>(depth_ * stride_);
    for (int64_t i = 0; i < in; ++i) {
      const int64_t count = parts.count[i], begin = std::min(parts.begin[i], out - 1);
      const T* weight = parts.weight + parts.place[i];
      if (count == 0) none_.push_back(static_cast<int32_t>(i));
      const int64_t whole = std::max(count - 1, int64_t(0)), shares = depth_ - whole;
      const T last = count == 0 ? T(0) : weight[whole];
      T share = last;
      for (int64_t n = 1; n < shares; n *= 2) share /= 2;  // a power of 2, so that they add up to `last`
      for (int64_t m = 0; m < depth_; ++m) {
        place_[m * stride_ + i] = static_cast<int32_t>(begin + std::min(m, whole));
        part_[m * stride_ + i] = m < whole ? weight[m] : m < depth_ - 1 ? share : last - share * (shares - 1);
      }
    }
    for (int64_t m = 0; m < depth_; ++m) {
      // Places ascend to the end of a vector.
      std::fill(place_.get() + m * stride_ + in, place_.get() + (m + 1) * stride_,
                place_[m * stride_ + in - 1]);
      std::fill(part_.get() + m * stride_ + in, part_.get() + (m + 1) * stride_, T(0));
    }
  }
  Transposed<T> view() const {
    return {place_.get(), part_.get(), depth_, stride_, none_.data(), static_cast<int64_t>(none_.size())};
  }

 private:
  int64_t depth_ = 0, stride_;
  Scratch<int32_t> place_;
  Scratch<T> part_;
  std::vector<int32_t> none_;
};

// Rows [begin, end) of one gradient, while output rows come from top to bottom: an input row is written once
// no more of them can reach it. Sums of rows before `begin` or after `end` are made, but not written.
template <class S, class T>
struct Gradient {
  S* grad;
  Taps<T> rows;
  Transposed<T> columns;
  int64_t in, out;  // widths
  T* store;         // RowPair::size: one row of the gradient, two rows of sums, slack
  int64_t begin, end;
  int64_t next;

  SOLO_ATTN_INLINE T* sums(int64_t i) { return store + padded(in) + (i & 1) * padded(out); }

  // Before output row y, the first of those to come.
  SOLO_ATTN_INLINE void start(int64_t y) {
    next = std::min<int64_t>(begin, rows.low[y]);
    for (int64_t x = 0; x < 2 * padded(out) + kSlack; ++x) store[padded(in) + x] = 0;
  }

  template <Isa isa>
  SOLO_ATTN_INLINE void add(int64_t y, const T* __restrict logits) {
    finish<isa>(rows.low[y]);
    const T weight = rows.weight[y];
    T* __restrict low = sums(rows.low[y]);
    if (rows.low[y] == rows.high[y]) {
      for (int64_t x = 0; x < out; ++x) low[x] += logits[x];
      return;
    }
    T* __restrict high = sums(rows.high[y]);
    for (int64_t x = 0; x < out; ++x) {
      low[x] += (1 - weight) * logits[x];
      high[x] += weight * logits[x];
    }
  }

  // Writes the rows before `last`.
  template <Isa isa>
  SOLO_ATTN_INLINE void finish(int64_t last) {
    last = std::min(last, end);
    for (; next < last; ++next) {
      T* __restrict from = sums(next);
      if (next >= begin) {
        T* __restrict row = store;
        for (int64_t i = 0; i < padded(in); ++i) row[i] = 0;
        for (int64_t m = 0; m < columns.depth; ++m) {
          add_taken<isa>(from, columns.place + m * columns.stride, columns.part + m * columns.stride, in,
                         row);
        }
        for (int64_t k = 0; k < columns.none_count; ++k) row[columns.none[k]] = 0;
        S* __restrict to = grad + next * in;
        for (int64_t i = 0; i < in; ++i) to[i] = static_cast<S>(row[i]);
      }
      for (int64_t x = 0; x < out; ++x) from[x] = 0;
    }
  }
};

template <class S, class T>
struct Backward {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(Maps<S, T> maps, Slope<T> slope, Gradient<S, T> coarse,
                                   Gradient<S, T> attention, Range wanted, T* __restrict p) {
    const int64_t width = maps.coarse.columns.out;
    if (coarse.grad != nullptr) coarse.start(wanted.begin);
    if (attention.grad != nullptr) attention.start(wanted.begin);
    for (int64_t y = wanted.begin; y < wanted.end; ++y) {
      probability_row<isa>(maps.coarse, maps.attention, y, p);
      const uint8_t* __restrict truth = maps.targets + y * width;
      for (int64_t x = 0; x < width; ++x) p[x] = slope(p[x], truth[x] != 0);
      if (coarse.grad != nullptr) coarse.template add<isa>(y, p);
      if (attention.grad != nullptr) attention.template add<isa>(y, p);
    }
    if (coarse.grad != nullptr) coarse.template finish<isa>(coarse.end);
    if (attention.grad != nullptr) attention.template finish<isa>(attention.end);
  }
};

std::tuple<Tensor, Tensor> dice_loss_cpu(const Tensor& coarse, const std::optional<Tensor>& attention,
                                         const Tensor& targets, double eps) {
  check_arguments(coarse, attention, targets);
  const int64_t count = coarse.size(0);
  const ScalarType wide = accumulator_dtype(coarse.scalar_type());
  Tensor losses = torch::stable::new_empty(coarse, {count}, wide);
  Tensor sums = torch::stable::new_empty(coarse, {count, 2}, wide);
  dispatch_float("dice_loss", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Inputs<S, T> in(coarse, attention, targets);
    const int64_t blocks = (in.height + kBlock - 1) / kBlock, line = padded(in.width);
    std::vector<Sums<double>> parts(count * blocks);
    const int64_t cost = std::min(kBlock, in.height) * in.width / 2;
    parallel_dynamic(count * blocks, cost, [&](const auto& next) {
      const auto store = scratch<T>(2 * line + in.room());
      for (int64_t item = next(); item >= 0; item = next()) {
        const int64_t begin = item % blocks * kBlock;
        parts[item] = call<Forward<S, T>>(in.at(item / blocks, store.get() + 2 * line), store.get(),
                                          store.get() + line, begin, std::min(begin + kBlock, in.height));
      }
    });
    T* out = losses.mutable_data_ptr<T>();
    T* kept = sums.mutable_data_ptr<T>();
    for (int64_t k = 0; k < count; ++k) {
      Sums<double> all{0, 0, 0};
      for (int64_t block = 0; block < blocks; ++block) {
        const Sums<double>& part = parts[k * blocks + block];
        all.overlap += part.overlap;
        all.squares += part.squares;
        all.pixels += part.pixels;
      }
      kept[2 * k] = static_cast<T>(all.overlap);
      kept[2 * k + 1] = static_cast<T>(all.total(eps));
      out[k] = loss(kept[2 * k], kept[2 * k + 1]);
    }
  });
  return {losses, sums};
}

std::tuple<Tensor, Tensor> dice_loss_bwd_cpu(const Tensor& grad, const Tensor& coarse,
                                             const std::optional<Tensor>& attention, const Tensor& targets,
                                             const Tensor& sums, bool coarse_wanted, bool attention_wanted) {
  check_backward(grad, coarse, attention, targets, sums);
  const int64_t count = coarse.size(0), side = attention ? attention->size(1) : 0;
  const Tensor grads = torch::stable::contiguous(grad), kept = torch::stable::contiguous(sums);
  const int64_t ch = coarse_wanted ? coarse.size(1) : 0, cw = coarse_wanted ? coarse.size(2) : 0;
  const int64_t edge = attention_wanted ? side : 0;
  Tensor coarse_grad = torch::stable::new_empty(coarse, {count, ch, cw});
  Tensor attention_grad = torch::stable::new_empty(coarse, {count, edge, edge});
  if (ch + edge == 0) return {coarse_grad, attention_grad};
  dispatch_float("dice_loss", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const Inputs<S, T> in(coarse, attention, targets);
    const SharedTable<TransposedTable<T>> columns(in.w, in.width),
        attention_columns(side, side == 0 ? 0 : in.width);
    const T* upstream = grads.const_data_ptr<T>();
    const T* sum = kept.const_data_ptr<T>();
    S* first = coarse_grad.mutable_data_ptr<S>();
    S* second = attention_grad.mutable_data_ptr<S>();
    const int64_t room = RowPair<S, T>::size(in.w, in.width), line = padded(in.width);
    const int64_t bands = bands_of(count, ch, edge, in.height);
    parallel_dynamic(count * bands, in.height * in.width / bands, [&](const auto& next) {
      const auto store = scratch<T>(line + 2 * in.room());
      T* sums_of_coarse = store.get() + line + in.room();
      T* sums_of_attention = sums_of_coarse + room;
      for (int64_t item = next(); item >= 0; item = next()) {
        const int64_t k = item / bands, band = item % bands;
        const Range coarse_band = part_of({0, ch}, band, bands);
        const Range attention_band = part_of({0, edge}, band, bands);
        const Range by_coarse = reaching(coarse_band, in.h, in.height);
        const Range by_attention = reaching(attention_band, side, in.height);
        const Range wanted{std::min(by_coarse.begin, by_attention.begin),
                           std::max(by_coarse.end, by_attention.end)};
        const auto slope = Slope<T>::of(upstream[k], sum[2 * k], sum[2 * k + 1]);
        const Gradient<S, T> to_coarse{ch == 0 ? nullptr : first + k * ch * cw,
                                       in.rows.view(),
                                       columns.view(),
                                       in.w,
                                       in.width,
                                       sums_of_coarse,
                                       coarse_band.begin,
                                       coarse_band.end,
                                       0};
        const Gradient<S, T> to_attention{edge == 0 ? nullptr : second + k * side * side,
                                          in.attention_rows.view(),
                                          attention_columns.view(),
                                          side,
                                          in.width,
                                          sums_of_attention,
                                          attention_band.begin,
                                          attention_band.end,
                                          0};
        call<Backward<S, T>>(in.at(k, store.get() + line), slope, to_coarse, to_attention, wanted,
                             store.get());
      }
    });
  });
  return {coarse_grad, attention_grad};
}

}  // namespace
}  // namespace solo_attn::dice_loss

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("dice_loss", TORCH_BOX(&solo_attn::dice_loss::dice_loss_cpu));
  m.impl("dice_loss_bwd", TORCH_BOX(&solo_attn::dice_loss::dice_loss_bwd_cpu));
}
