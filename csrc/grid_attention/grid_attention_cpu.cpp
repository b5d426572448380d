// The dot products of every pair of cells.
//
// S = 40, C = 256, float32: 2 C N^2 = 1.31 GFLOP, of which half is computed and mirrored; 1.6 MB are read and
// 10.2 MB written. At 32 multiply-adds per cycle and core (AVX-512) that half takes 4 ms on two cores of 2.5
// GHz, and the writes 1 to 4 ms. Backward: dV = scale * V (dG + dG^T) is 1.31 GFLOP; dG + dG^T is added while
// its panels are packed. Chosen cells: 2 C N flops per cell, and one read of V.
#include "grid_attention_cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/check.h"
#include "../common/dtypes.h"
#include "grid_attention.h"
#include "grid_attention_arguments.h"

namespace solo_attn::grid_attention {
namespace {

constexpr int64_t kBlock = 96;   // a square of whole tiles
constexpr int64_t kTurned = 16;  // a square that is transposed at a time
static_assert(kBlock % kTileRows == 0 && kBlock % kTileColumns == 0 && kBlock % kTurned == 0);

#if defined(SOLO_ATTN_X86)
// Transposes 16 x 16: interleaves pairs of rows, then pairs of pairs, within lanes of four; then exchanges
// lanes.
SOLO_ATTN_AVX512 inline void turn_avx512(const float* in, int64_t stride, float* out, int64_t out_stride) {
  __m512d a[16];
  __m512 b[16];
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    const __m512 one = _mm512_loadu_ps(in + r * stride), two = _mm512_loadu_ps(in + (r + 1) * stride);
    a[r] = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(0xffff, one, two));
    a[r + 1] = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(0xffff, one, two));
  }
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {
    b[r] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, a[r], a[r + 2]));
    b[r + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, a[r], a[r + 2]));
    b[r + 2] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, a[r + 1], a[r + 3]));
    b[r + 3] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, a[r + 1], a[r + 3]));
  }
  // b[4 q + c] holds in lane l column 4 l + c of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_maskz_shuffle_f32x4(0xffff, b[c], b[4 + c], 0x88);
    const __m512 odd = _mm512_maskz_shuffle_f32x4(0xffff, b[c], b[4 + c], 0xdd);
    const __m512 late_even = _mm512_maskz_shuffle_f32x4(0xffff, b[8 + c], b[12 + c], 0x88);
    const __m512 late_odd = _mm512_maskz_shuffle_f32x4(0xffff, b[8 + c], b[12 + c], 0xdd);
    _mm512_storeu_ps(out + c * out_stride, _mm512_maskz_shuffle_f32x4(0xffff, even, late_even, 0x88));
    _mm512_storeu_ps(out + (c + 4) * out_stride, _mm512_maskz_shuffle_f32x4(0xffff, odd, late_odd, 0x88));
    _mm512_storeu_ps(out + (c + 8) * out_stride, _mm512_maskz_shuffle_f32x4(0xffff, even, late_even, 0xdd));
    _mm512_storeu_ps(out + (c + 12) * out_stride, _mm512_maskz_shuffle_f32x4(0xffff, odd, late_odd, 0xdd));
  }
}
#endif

// out[c, r] = in[r, c] of a square of kTurned.
template <Isa isa, class T>
SOLO_ATTN_INLINE void turn(const T* in, int64_t stride, T* out, int64_t out_stride) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<T, float> && isa == Isa::avx512)
    return turn_avx512(in, stride, out, out_stride);
#endif
  for (int64_t c = 0; c < kTurned; ++c) {
    for (int64_t r = 0; r < kTurned; ++r) out[c * out_stride + r] = in[r * stride + c];
  }
}

#if defined(SOLO_ATTN_X86)
SOLO_ATTN_AVX512 inline void write_avx512(const float* in, int64_t count, float* out) {
  for (int64_t k = 0; k < count; k += 16) _mm512_stream_ps(out + k, _mm512_loadu_ps(in + k));
}
#endif

// narrow() with non-temporal stores of whole cache lines: ordinary stores of short rows, scattered over a
// result that is larger than the caches, would first read every line, which takes as long as the products. To
// be followed by an sfence.
template <Isa isa, class S, class T>
SOLO_ATTN_INLINE void write(const T* in, int64_t count, S* out) {
#if defined(SOLO_ATTN_X86)
  if constexpr (std::is_same_v<S, float> && isa == Isa::avx512) {
    if (count % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0) return write_avx512(in, count, out);
  }
#endif
  narrow<isa>(in, count, out);
}

// Block (i, j) with i <= j of the full map, and its mirror image.
template <class S, class T>
struct Block {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const T* rows, const T* columns, int64_t depth, int64_t cells, T scale,
                                   int64_t i, int64_t j, S* out) {
    T buffer[kBlock * kBlock], strip[kTurned * kBlock];
    const int64_t height = std::min(kBlock, cells - i), width = std::min(kBlock, cells - j);
    for (int64_t c = 0; c < width; c += kTileColumns) {
      for (int64_t r = 0; r < height; r += kTileRows) {
        if (i == j && c + kTileColumns <= r) continue;
        multiply<isa>(rows + (i + r) * depth, columns + (j + c) * depth, depth, scale,
                      buffer + r * kBlock + c, kBlock);
      }
    }
    if (i == j) {
      // Below the diagonal: tiles that were not computed, and the lower halves of tiles on the diagonal.
      // Where a compiler fuses some multiply-adds of a tile and not others, as GCC does on ARM64, those
      // differ from the upper halves.
      for (int64_t r = 0; r < height; ++r) {
        for (int64_t c = 0; c < r; ++c) buffer[r * kBlock + c] = buffer[c * kBlock + r];
      }
    }
    for (int64_t r = 0; r < height; ++r) write<isa>(buffer + r * kBlock, width, out + (i + r) * cells + j);
    for (int64_t c = 0; c < width && i != j; c += kTurned) {
      for (int64_t r = 0; r < height; r += kTurned) {
        turn<isa>(buffer + r * kBlock + c, kBlock, strip + r, kBlock);
      }
      const int64_t some = std::min(kTurned, width - c);
      for (int64_t k = 0; k < some; ++k)
        write<isa>(strip + k * kBlock, height, out + (j + c + k) * cells + i);
    }
#if defined(SOLO_ATTN_X86)
    _mm_sfence();
#endif
  }
};

template <class S, class T>
void full_map(const S* features, int64_t channels, int64_t cells, T scale, S* out) {
  const auto rows = scratch<T>(tiles(cells, kTileRows) * kTileRows * channels);
  const auto columns = scratch<T>(tiles(cells, kTileColumns) * kTileColumns * channels);
  pack_all(features, channels, cells, rows.get(), columns.get());
  const int64_t side = tiles(cells, kBlock);
  parallel_for(block_pairs(side), kBlock * channels * 3, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const auto [i, j] = block_pair(block);
      call<Block<S, T>>(static_cast<const T*>(rows.get()), static_cast<const T*>(columns.get()), channels,
                        cells, scale, i * kBlock, j * kBlock, out);
    }
  });
}

// The chosen cells of one image: their positions in the list, and their indices.
struct Chosen {
  std::vector<int64_t> place;
  std::vector<int64_t> cell;
  int64_t count() const { return static_cast<int64_t>(cell.size()); }
};

std::vector<Chosen> by_image(const Tensor& cells, const Tensor& features) {
  const int64_t batch = features.size(0), count = features.size(2) * features.size(3);
  check_list(cells, features, cells.is_cpu());
  const Tensor pairs_in = torch::stable::contiguous(cells);
  const auto* pairs = pairs_in.const_data_ptr<int64_t>();
  const int64_t total = cells.size(0);
  std::vector<Chosen> images(batch);
  if (total == 0) return images;
  int64_t low[2] = {pairs[0], pairs[1]}, high[2] = {pairs[0], pairs[1]};
  for (int64_t k = 0; k < 2 * total; ++k) {
    low[k % 2] = std::min(low[k % 2], pairs[k]);
    high[k % 2] = std::max(high[k % 2], pairs[k]);
  }
  check_value(low[0] >= 0 && high[0] < batch && low[1] >= 0 && high[1] < count,
              "grid_attention: expected cells of (image < ", batch, ", cell < ", count, "), got images ",
              low[0], "..", high[0], " and cells ", low[1], "..", high[1]);
  for (int64_t k = 0; k < total; ++k) {
    images[pairs[2 * k]].place.push_back(k);
    images[pairs[2 * k]].cell.push_back(pairs[2 * k + 1]);
  }
  return images;
}

// The rows of at most 12 cells for one panel of columns.
template <class S, class T>
struct ChosenTile {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const T* rows, const T* columns, int64_t depth, int64_t cells, T scale,
                                   const int64_t* place, int64_t count, int64_t first, S* out) {
    T buffer[kTileRows * kTileColumns];
    multiply<isa>(rows, columns, depth, scale, buffer, kTileColumns);
    const int64_t some = std::min(kTileColumns, cells - first);
    for (int64_t r = 0; r < count; ++r) {
      narrow<isa>(buffer + r * kTileColumns, some, out + place[r] * cells + first);
    }
  }
};

template <class S, class T>
void chosen_map(const S* features, const Chosen& chosen, int64_t channels, int64_t cells, T scale, S* out) {
  const int64_t groups = tiles(chosen.count(), kTileRows), panels = tiles(cells, kTileColumns);
  const auto rows = scratch<T>(groups * kTileRows * channels);
  const auto columns = scratch<T>(panels * kTileColumns * channels);
  chosen_rows(features, channels, cells, chosen.cell.data(), chosen.count(), rows.get());
  pack_all<S, T>(features, channels, cells, nullptr, columns.get());
  parallel_for(groups * panels, channels * 6, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t panel = t / groups, row = t % groups * kTileRows;
      call<ChosenTile<S, T>>(static_cast<const T*>(rows.get()) + row * channels,
                             static_cast<const T*>(columns.get()) + panel * kTileColumns * channels, channels,
                             cells, scale, chosen.place.data() + row,
                             std::min(kTileRows, chosen.count() - row), panel * kTileColumns, out);
    }
  });
}

template <class S, class T>
struct Widen {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* in, int64_t count, T* out) {
    widen<isa>(in, count, out);
  }
};

template <class S, class T>
struct Narrow {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const T* in, int64_t count, S* out) {
    narrow<isa>(in, count, out);
  }
};

// out [rows, columns] = scale * left . right, with left packed and right [depth, columns] packed here.
template <class T>
void product(const T* left, int64_t row_count, const T* right, int64_t column_count, int64_t depth, T scale,
             T* out) {
  parallel_for(tiles(column_count, kTileColumns), row_count * depth / 2, [&](int64_t begin, int64_t end) {
    const auto columns = scratch<T>(depth * kTileColumns), memory = scratch<T>(panel_room(row_count));
    for (int64_t panel = begin; panel < end; ++panel) {
      call<PackColumns<T, T>>(right, depth, column_count, panel, columns.get());
      call<Panel<T, T>>(left, row_count, static_cast<const T*>(columns.get()), column_count, panel, depth,
                        scale, out, memory.get());
    }
  });
}

// The gradient where only the chosen rows D [k, N] of dG are not zero: dV = scale * (V_chosen D + V D^T at
// the chosen cells).
template <class S, class T>
void chosen_gradient(const S* grad, const S* features, const Chosen& chosen, int64_t channels, int64_t cells,
                     T scale, S* out) {
  const int64_t count = chosen.count();
  const auto rows = scratch<T>(count * cells), turned = scratch<T>(count * cells);
  parallel_for(count, cells, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      call<Widen<S, T>>(grad + chosen.place[k] * cells, cells, rows.get() + k * cells);
      for (int64_t n = 0; n < cells; ++n) turned[n * count + k] = rows[k * cells + n];
    }
  });
  const auto left = scratch<T>(tiles(channels, kTileRows) * kTileRows * std::max(cells, count));
  const auto sum = scratch<T>(channels * cells), picked = scratch<T>(channels * count);
  channel_rows(features, channels, cells, chosen.cell.data(), count, left.get());
  product<T>(left.get(), channels, rows.get(), cells, count, scale, sum.get());
  channel_rows(features, channels, cells, nullptr, cells, left.get());
  product<T>(left.get(), channels, turned.get(), count, cells, scale, picked.get());
  parallel_for(channels, cells + count, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      // A cell may be chosen more than once: its gradients are added in the order of the list.
      for (int64_t k = 0; k < count; ++k) sum[c * cells + chosen.cell[k]] += picked[c * count + k];
      call<Narrow<S, T>>(static_cast<const T*>(sum.get()) + c * cells, cells, out + c * cells);
    }
  });
}

// The argument for tf32 has no effect here: it is for GPUs.
Tensor grid_attention_cpu(const Tensor& grid_features, double scale, const std::optional<Tensor>& cells,
                          bool) {
  check_features("grid_attention", grid_features);
  const int64_t batch = grid_features.size(0), channels = grid_features.size(1), side = grid_features.size(2);
  const int64_t count = side * side;
  std::vector<Chosen> chosen;
  if (cells) chosen = by_image(*cells, grid_features);
  const Tensor features = torch::stable::contiguous(grid_features);
  Tensor out = cells ? torch::stable::new_empty(features, {cells->size(0), side, side})
                     : torch::stable::new_empty(features, {batch, count, side, side});
  dispatch_float("grid_attention", features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const S* from = features.const_data_ptr<S>();
    S* to = out.mutable_data_ptr<S>();
    for (int64_t b = 0; b < batch; ++b) {
      const S* image = from + b * channels * count;
      if (!cells) {
        full_map<S, T>(image, channels, count, static_cast<T>(scale), to + b * count * count);
      } else if (chosen[b].count() > 0) {
        chosen_map<S, T>(image, chosen[b], channels, count, static_cast<T>(scale), to);
      }
    }
  });
  return out;
}

Tensor grid_attention_bwd_cpu(const Tensor& grad, const Tensor& grid_features, double scale,
                              const std::optional<Tensor>& cells, bool) {
  check_features("grid_attention_bwd", grid_features);
  const int64_t batch = grid_features.size(0), channels = grid_features.size(1), side = grid_features.size(2);
  const int64_t count = side * side;
  std::vector<Chosen> chosen;
  if (cells) chosen = by_image(*cells, grid_features);
  check_grad(grad, grid_features, cells, grad.is_cpu());
  const Tensor features = torch::stable::contiguous(grid_features),
               upstream = torch::stable::contiguous(grad);
  Tensor out = torch::stable::new_empty(features, features.sizes());
  dispatch_float("grid_attention", features.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    const S* above = upstream.const_data_ptr<S>();
    const S* from = features.const_data_ptr<S>();
    S* to = out.mutable_data_ptr<S>();
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t image = b * channels * count;
      if (cells) {
        chosen_gradient<S, T>(above, from + image, chosen[b], channels, count, static_cast<T>(scale),
                              to + image);
      } else {
        features_gradient<S, S, T>(above + b * count * count, from + image, channels, count,
                                   static_cast<T>(scale), to + image);
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace solo_attn::grid_attention

STABLE_TORCH_LIBRARY_IMPL(solo_attn, CPU, m) {
  m.impl("grid_attention", TORCH_BOX(&solo_attn::grid_attention::grid_attention_cpu));
  m.impl("grid_attention_bwd", TORCH_BOX(&solo_attn::grid_attention::grid_attention_bwd_cpu));
}
