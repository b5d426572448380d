// Two bilinear upsamplings, added in one write.
//
// K = 100 cells, h x w = 100 x 168 and S = 40 to H x W = 200 x 336 in float32: 27 MB are written and 7.4 MB
// read. 4 multiply-adds per output pixel from rows in the L1 cache, 54 MFLOP, and as much again for the rows
// along x: far less than the time of the writes, which are the lower bound. Backward: one read of 27 MB, two
// multiply-adds per pixel and image.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/bilinear_rows.h"
#include "../common/cells.h"
#include "../common/check.h"
#include "../common/describe.h"
#include "../common/dtypes.h"
#include "../common/large_results.h"
#include "../common/new_pages.h"
#include "../common/parallel.h"
#include "../common/shared_table.h"
#include "upsample_add.h"
#include "upsample_add_arguments.h"

namespace solo_attn::upsample_add {
namespace {

template <class T>
struct Axes {
  Axis<T> y;
  Axis<T> x;
};

// Rows [begin, end) of the output's K * H rows; `attention` may be null.
template <class S, class T>
struct Add {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* coarse, Axes<T> c, const S* attention, Axes<T> a, S* out,
                                   int64_t begin, int64_t end, T* memory) {
    const int64_t height = c.y.out, width = c.x.out;
    const Images in{c.y.in, c.x.in}, more{a.y.in, a.x.in}, to{height, width};
    T* sum = memory;
    T* coarse_memory = sum + padded(width);
    T* attention_memory = coarse_memory + expanded_room(c.x);
    for (int64_t image = begin / height; image * height < end; ++image) {
      Expanded<S, T> large{coarse + in.image(image), c.x, coarse_memory};
      Expanded<S, T> rows{attention + more.image(image), a.x, attention_memory};
      const int64_t first = std::max(begin, image * height), last = std::min(end, (image + 1) * height);
      for (int64_t r = first; r < last; ++r) {
        const int64_t d = r - image * height;
        S* line = out + to.row(r);
        if constexpr (std::is_same_v<S, T>) sum = line;
        const Between<T> one = between<isa>(large, c.y, d);
        if (attention == nullptr) {
          SOLO_ATTN_INDEPENDENT
          for (int64_t k = 0; k < width; ++k) sum[k] = one[k];
        } else {
          const Between<T> other = between<isa>(rows, a.y, d);
          SOLO_ATTN_INDEPENDENT
          for (int64_t k = 0; k < width; ++k) sum[k] = one[k] + other[k];
        }
        if constexpr (!std::is_same_v<S, T>) narrow<isa>(sum, width, line);
      }
    }
  }
};

template <class T>
struct Adjoint {
  Parts<T> y;
  Parts<T> x;
};

// Both gradients of one cell; that of the attention is skipped if `rows` is null.
template <class S, class T>
struct Gather {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* grad, Adjoint<T> c, S* coarse, Adjoint<T> a, S* rows, T* memory) {
    const int64_t pixels = c.y.out * c.x.out;
    T* row = memory;
    T* small = row + padded(c.x.out);
    const T* wide;
    if constexpr (std::is_same_v<S, T>) {
      wide = grad;
    } else {
      T* copy = small + padded(std::max(c.y.in * c.x.in, a.y.in * a.x.in));
      widen<isa>(grad, pixels, copy);
      wide = copy;
    }
    one<isa>(wide, c, row, small, coarse);
    if (rows != nullptr) one<isa>(wide, a, row, small, rows);
  }

  template <Isa isa>
  static SOLO_ATTN_INLINE void one(const T* grad, const Adjoint<T>& to, T* row, T* small, S* out) {
    if constexpr (std::is_same_v<S, T>) {
      gather<isa>(grad, to.y, to.x, row, out);
    } else {
      gather<isa>(grad, to.y, to.x, row, small);
      narrow<isa>(small, to.y.in * to.x.in, out);
    }
  }
};

Tensor upsample_add_cpu(const Tensor& coarse_logits, const std::optional<Tensor>& attention,
                        const std::vector<int64_t>& size) {
  check_cells("upsample_add", coarse_logits, attention);
  check_size("upsample_add", "size", size);
  const int64_t count = coarse_logits.size(0), height = size[0], width = size[1];
  const Tensor coarse = torch::stable::contiguous(coarse_logits);
  Tensor rows = coarse;
  if (attention) rows = torch::stable::contiguous(*attention);
  Tensor out = new_result(coarse, {count, height, width}, coarse.scalar_type());
  NewPages pages(out.mutable_data_ptr(), bytes_of(out));
  dispatch_float("upsample_add", coarse.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const SharedTable<AxisTable<T>> cy(coarse.size(1), height), cx(coarse.size(2), width);
    const SharedTable<AxisTable<T>> ay(rows.size(1), height), ax(rows.size(2), width);
    const Axes<T> c{cy.view(), cx.view()}, a{ay.view(), ax.view()};
    const S* from = coarse.const_data_ptr<S>();
    const S* add = attention ? rows.const_data_ptr<S>() : nullptr;
    S* to = out.mutable_data_ptr<S>();
    parallel_for(count * height, width / 4, [&](int64_t begin, int64_t end) {
      const auto memory = scratch<T>(padded(width) + expanded_room(c.x) + expanded_room(a.x));
      for (int64_t row = begin, stop; row < end; row = stop) {
        stop = std::min(end, (row / height + 1) * height);  // of the same cell
        pages.reach(to + row * width, (stop - row) * width * sizeof(S));
        call<Add<S, T>>(from, c, add, a, to, row, stop, memory.get());
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> upsample_add_bwd_cpu(const Tensor& grad, const std::vector<int64_t>& coarse_size,
                                                const std::vector<int64_t>& attention_size) {
  check_backward(grad, coarse_size, attention_size);
  const int64_t count = grad.size(0), height = grad.size(1), width = grad.size(2);
  const int64_t ch = coarse_size[0], cw = coarse_size[1];
  const int64_t ah = attention_size[0], aw = ah == 0 ? 0 : attention_size[1];
  const Images large{height, width}, small{ch, cw}, map{ah, aw};
  const Tensor upstream = torch::stable::contiguous(grad);
  Tensor coarse = torch::stable::new_empty(upstream, {count, ch, cw});
  Tensor rows = torch::stable::new_empty(upstream, {count, ah, aw});
  dispatch_float("upsample_add", upstream.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const SharedTable<PartsTable<T>> cy(ch, height), cx(cw, width), ay(ah, height), ax(aw, width);
    const Adjoint<T> c{cy.view(), cx.view()}, a{ay.view(), ax.view()};
    const S* from = upstream.const_data_ptr<S>();
    S* coarse_to = coarse.mutable_data_ptr<S>();
    S* rows_to = map.pixels() > 0 ? rows.mutable_data_ptr<S>() : nullptr;
    const int64_t room =
        padded(width) +
        (std::is_same_v<S, T> ? 0 : padded(std::max(small.pixels(), map.pixels())) + large.pixels());
    parallel_for(count, large.pixels() / 2, [&](int64_t begin, int64_t end) {
      const auto memory = scratch<T>(room);
      for (int64_t k = begin; k < end; ++k) {
        call<Gather<S, T>>(from + large.image(k), c, coarse_to + small.image(k), a,
                           rows_to == nullptr ? nullptr : rows_to + map.image(k), memory.get());
      }
    });
  });
  return {coarse, rows};
}

}  // namespace
}  // namespace solo_attn::upsample_add

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("upsample_add", TORCH_BOX(&solo_attn::upsample_add::upsample_add_cpu));
  m.impl("upsample_add_bwd", TORCH_BOX(&solo_attn::upsample_add::upsample_add_bwd_cpu));
}
