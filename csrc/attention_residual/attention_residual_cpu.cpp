// Mask logits plus the upsampled attention maps of their cells, in one pass over the logits.
//
// S = 40, C = 256, 168 x 336, float32: 361 MB are read and 361 MB written; in place these are the same cache
// lines. Out of place the result is memory of an earlier one (common/large_results.h), or new, and then its
// page faults take longer than everything else: 3/4 of the time in small pages, half of it in huge ones
// (common/new_pages.h). (Into memory that is there already, stores past the cache took 32 ms and ordinary
// ones 27.) The dot products are 2 C N^2 = 1.31 GFLOP: 8 ms on two cores of 2.5 GHz with AVX-512. Upsampling
// is 3 flops per pixel from rows in the L1 cache, 0.27 GFLOP, and the interpolation along x a quarter of
// that. So the lower bound is one read and one write of the logits plus the product. The S x S maps stay in
// the L2 cache, 48 cells at a time. Backward: one read of 361 MB, two multiply-adds per pixel, and the
// product of grid_attention_bwd.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../common/bilinear_rows.h"
#include "../common/check.h"
#include "../common/dtypes.h"
#include "../common/gemm.h"
#include "../common/large_results.h"
#include "../common/new_pages.h"
#include "../common/parallel.h"
#include "../common/shared_table.h"
#include "../grid_attention/grid_attention_cpu.h"
#include "attention_residual.h"
#include "attention_residual_arguments.h"

namespace solo_attn::attention_residual {
namespace {

// Groups of 12 cells that are multiplied with a panel of features while it is in the L1 cache.
constexpr int64_t kGroups = 4;

// The maps of groups [begin, end), at most kGroups of them, as rows of `stride` elements.
template <class T>
struct Maps {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const T* rows, const T* columns, int64_t depth, int64_t cells, T scale,
                                   int64_t begin, int64_t end, T* out, int64_t stride) {
    for (int64_t c = 0; c < cells; c += kTileColumns) {
      for (int64_t g = begin; g < end; ++g) {
        multiply<isa>(rows + g * kTileRows * depth, columns + c * depth, depth, scale,
                      out + (g - begin) * kTileRows * stride + c, stride);
      }
    }
  }
};

// out = logits + upsampled map, for one cell. `logits` may be `out`.
template <class S, class T>
struct Add {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* logits, const T* map, Axis<T> y, Axis<T> x, S* out, T* memory) {
    T* sum = memory;
    Expanded<T, T> rows{map, x, memory + padded(x.out)};
    for (int64_t d = 0; d < y.out; ++d, logits += x.out, out += x.out) {
      const Between<T> large = between<isa>(rows, y, d);
      if constexpr (std::is_same_v<S, T>) {
        SOLO_ATTN_INDEPENDENT
        for (int64_t k = 0; k < x.out; ++k) out[k] = logits[k] + large[k];
      } else {
        widen<isa>(logits, x.out, sum);
        SOLO_ATTN_INDEPENDENT
        for (int64_t k = 0; k < x.out; ++k) sum[k] += large[k];
        narrow<isa>(sum, x.out, out);
      }
    }
  }
};

// The gradient of one cell's map.
template <class S, class T>
struct Gather {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* grad, Parts<T> y, Parts<T> x, T* out, T* memory) {
    if constexpr (std::is_same_v<S, T>) {
      gather<isa>(grad, y, x, memory, out);
    } else {
      T* wide = memory + padded(x.out);
      widen<isa>(grad, y.out * x.out, wide);
      gather<isa>(static_cast<const T*>(wide), y, x, memory, out);
    }
  }
};

void check_arguments(const char* what, const Tensor& logits, const Tensor& features) {
  attention_residual::check_arguments(what, logits, features, features.is_cpu() && logits.is_cpu());
}

// Both are contiguous and [B, N, H, W]; they may be the same tensor, of which nothing is new.
void add(const Tensor& logits, const Tensor& grid_features, double scale, Tensor& out, NewPages* pages) {
  const Tensor features = torch::stable::contiguous(grid_features);
  const Sizes size = sizes(logits, features);
  const int64_t channels = size.channels, cells = size.cells(), width = size.width;
  if (size.batch * cells == 0) return;
  const int64_t groups = tiles(cells, kTileRows), stride = tiles(cells, kTileColumns) * kTileColumns;
  dispatch_float("attention_residual", logits.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const SharedTable<AxisTable<T>> y(size.side, size.height), x(size.side, width);
    const auto rows = scratch<T>(groups * kTileRows * channels), columns = scratch<T>(stride * channels);
    const S* in = logits.const_data_ptr<S>();
    S* to = out.mutable_data_ptr<S>();
    for (int64_t b = 0; b < size.batch; ++b) {
      const S* image = features.const_data_ptr<S>() + size.features_offset(b);
      grid_attention::pack_all(image, channels, cells, rows.get(), columns.get());
      const int64_t cost = kTileRows * (cells * channels / 16 + size.pixels() / 4);
      parallel_for(groups, cost, [&](int64_t begin, int64_t end) {
        const auto maps = scratch<T>(std::min(kGroups, end - begin) * kTileRows * stride);
        const auto memory = scratch<T>(padded(width) + expanded_room(x.view()));
        for (int64_t g = begin; g < end; g += kGroups) {
          call<Maps<T>>(static_cast<const T*>(rows.get()), static_cast<const T*>(columns.get()), channels,
                        cells, static_cast<T>(scale), g, std::min(g + kGroups, end), maps.get(), stride);
          const int64_t first = g * kTileRows,
                        last = std::min({(g + kGroups) * kTileRows, end * kTileRows, cells});
          for (int64_t n = first; n < last; ++n) {
            const int64_t offset = size.logits_offset(b, n);
            if (pages != nullptr) pages->reach(to + offset, size.pixels() * sizeof(S));
            call<Add<S, T>>(in + offset, static_cast<const T*>(maps.get()) + (n - first) * stride, y.view(),
                            x.view(), to + offset, memory.get());
          }
        }
      });
    }
  });
}

Tensor attention_residual_cpu(const Tensor& mask_logits, const Tensor& grid_features, double scale, bool) {
  check_arguments("mask_logits", mask_logits, grid_features);
  const auto shape = mask_logits.sizes();
  Tensor out = new_result(mask_logits, {shape.begin(), shape.end()}, mask_logits.scalar_type());
  NewPages pages(out.mutable_data_ptr(), bytes_of(out));
  add(torch::stable::contiguous(mask_logits), grid_features, scale, out, &pages);
  return out;
}

void attention_residual_inplace_cpu(Tensor mask_logits, const Tensor& grid_features, double scale, bool) {
  check_arguments("mask_logits", mask_logits, grid_features);
  write_over(mask_logits,
             [&](const Tensor& in, Tensor& out) { add(in, grid_features, scale, out, nullptr); });
}

Tensor attention_residual_bwd_cpu(const Tensor& grad, const Tensor& grid_features, double scale, bool) {
  check_arguments("grad", grad, grid_features);
  const Tensor upstream = torch::stable::contiguous(grad),
               features = torch::stable::contiguous(grid_features);
  const Sizes size = sizes(upstream, features);
  const int64_t cells = size.cells();
  Tensor out = torch::stable::new_empty(features, features.sizes());
  dispatch_float("attention_residual", features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const SharedTable<PartsTable<T>> y(size.side, size.height), x(size.side, size.width);
    const auto maps = scratch<T>(cells * cells);
    const int64_t room = padded(size.width) + (std::is_same_v<S, T> ? 0 : size.pixels());
    for (int64_t b = 0; b < size.batch; ++b) {
      const S* above = upstream.const_data_ptr<S>() + size.logits_offset(b, 0);
      parallel_for(cells, size.pixels() / 4, [&](int64_t begin, int64_t end) {
        const auto memory = scratch<T>(room);
        for (int64_t n = begin; n < end; ++n) {
          call<Gather<S, T>>(above + n * size.pixels(), y.view(), x.view(), maps.get() + n * cells,
                             memory.get());
        }
      });
      const int64_t image = size.features_offset(b);
      grid_attention::features_gradient<S, T, T>(maps.get(), features.const_data_ptr<S>() + image,
                                                 size.channels, cells, static_cast<T>(scale),
                                                 out.mutable_data_ptr<S>() + image);
    }
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::attention_residual

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("attention_residual", TORCH_BOX(&solo_attn::attention_residual::attention_residual_cpu));
  m.impl("attention_residual_", TORCH_BOX(&solo_attn::attention_residual::attention_residual_inplace_cpu));
  m.impl("attention_residual_bwd", TORCH_BOX(&solo_attn::attention_residual::attention_residual_bwd_cpu));
}
