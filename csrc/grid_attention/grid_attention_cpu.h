// What grid_attention and attention_residual share on the CPU: packed features, and their gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/bilinear_rows.h"
#include "../common/gemm.h"
#include "../common/parallel.h"

namespace solo_attn::grid_attention {

// A panel of V [C, N], packed as the right factor: columns from 32 p on.
template <class S, class T>
struct PackColumns {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* in, int64_t depth, int64_t count, int64_t panel, T* out) {
    pack_columns<isa>(in, depth, count, panel * kTileColumns, out);
  }
};

// Packs rows [begin, end) of V [C, N] for all panels of columns and, unless `rows` is null, as the left
// factor for all groups of 12 columns.
template <class S, class T>
struct PackAll {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const S* in, int64_t depth, int64_t count, int64_t begin, int64_t end,
                                   T* rows, T* columns) {
    part<isa, kTileColumns>(in, depth, count, begin, end, columns);
    if (rows != nullptr) part<isa, kTileRows>(in, depth, count, begin, end, rows);
  }

  template <Isa isa, int64_t tile>
  static SOLO_ATTN_INLINE void part(const S* in, int64_t depth, int64_t count, int64_t begin, int64_t end,
                                    T* out) {
    for (int64_t first = 0; first < count; first += tile) {
      const int64_t some = std::min(tile, count - first);
      for (int64_t k = begin; k < end; ++k) {
        T* to = out + first * depth + k * tile;
        const S* from = in + k * count + first;
        if (some == tile) {
          widen<isa>(from, tile, to);
        } else {
          widen<isa>(from, some, to);
          for (int64_t c = some; c < tile; ++c) to[c] = 0;
        }
      }
    }
  }
};

// A few rows of V at a time, so that few memory streams are read; one panel after the other would access
// another page for every 32 elements.
template <class S, class T>
void pack_all(const S* in, int64_t depth, int64_t count, T* rows, T* columns) {
  constexpr int64_t kRows = 16;
  parallel_for(tiles(depth, kRows), kRows * count / 2, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kRows; k < std::min(depth, end * kRows); k += kRows) {
      call<PackAll<S, T>>(in, depth, count, k, std::min(depth, k + kRows), rows, columns);
    }
  });
}

// The chosen columns of V, packed as the left factor: group g holds those from chosen[12 g] on.
template <class S, class T>
void chosen_rows(const S* in, int64_t depth, int64_t stride, const int64_t* chosen, int64_t count, T* out) {
  parallel_for(tiles(count, kTileRows), depth * 8, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t some = std::min(kTileRows, count - g * kTileRows);
      pack_rows(in, depth, stride, chosen + g * kTileRows, some, out + g * depth * kTileRows);
    }
  });
}

// V transposed, packed as the left factor: group g holds channels from 12 g on, over the depth of the cells
// `chosen` (all where it is null).
template <class S, class T>
void channel_rows(const S* in, int64_t channels, int64_t cells, const int64_t* chosen, int64_t depth,
                  T* out) {
  parallel_for(tiles(channels, kTileRows), depth * 8, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      T* to = out + g * depth * kTileRows;
      for (int64_t r = 0; r < kTileRows; ++r) {
        const int64_t c = g * kTileRows + r;
        const S* from = in + c * cells;
        for (int64_t n = 0; n < depth; ++n) {
          to[n * kTileRows + r] = c < channels ? static_cast<T>(from[chosen ? chosen[n] : n]) : T(0);
        }
      }
    }
  });
}

// A panel of dG + dG^T, which is computed only here: [N, 32] from column 32 p on.
template <class G, class T>
struct PackSymmetric {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const G* grad, int64_t cells, int64_t panel, T* out) {
    const int64_t first = panel * kTileColumns, some = std::min(kTileColumns, cells - first);
    pack_columns<isa>(grad, cells, cells, first, out);
    T line[64];
    for (int64_t n = 0; n < cells; n += 64) {
      const int64_t part = std::min<int64_t>(64, cells - n);
      for (int64_t c = 0; c < some; ++c) {
        widen<isa>(grad + (first + c) * cells + n, part, line);
        for (int64_t k = 0; k < part; ++k) out[(n + k) * kTileColumns + c] += line[k];
      }
    }
  }
};

// One panel of columns times all groups of rows, written to out [rows, columns]. A part of the panel stays in
// the L1 cache while it is multiplied with all groups; `memory` holds the sums, 32 for each row of whole
// groups.
template <class S, class T>
struct Panel {
  template <Isa isa>
  static SOLO_ATTN_INLINE void run(const T* rows, int64_t row_count, const T* columns, int64_t column_count,
                                   int64_t panel, int64_t depth, T scale, S* out, T* memory) {
    const int64_t first = panel * kTileColumns, some = std::min(kTileColumns, column_count - first);
    int64_t k = 0;
    do {
      const int64_t part = std::min(kTileDepth, depth - k);
      for (int64_t r = 0; r < row_count; r += kTileRows) {
        tile<isa>(rows + r * depth + k * kTileRows, columns + k * kTileColumns, part, scale, k > 0,
                  memory + r * kTileColumns, kTileColumns);
      }
      k += kTileDepth;
    } while (k < depth);
    for (int64_t r = 0; r < row_count; ++r) {
      narrow<isa>(memory + r * kTileColumns, some, out + r * column_count + first);
    }
  }
};

inline int64_t panel_room(int64_t row_count) {
  return tiles(row_count, kTileRows) * kTileRows * kTileColumns;
}

// dV = scale * V (dG + dG^T) of one image; V and dV are [C, N], dG is [N, N].
template <class S, class G, class T>
void features_gradient(const G* grad, const S* features, int64_t channels, int64_t cells, T scale, S* out) {
  const auto rows = scratch<T>(tiles(channels, kTileRows) * kTileRows * cells);
  channel_rows(features, channels, cells, nullptr, cells, rows.get());
  parallel_for(tiles(cells, kTileColumns), cells * channels / 2, [&](int64_t begin, int64_t end) {
    const auto columns = scratch<T>(cells * kTileColumns), memory = scratch<T>(panel_room(channels));
    for (int64_t panel = begin; panel < end; ++panel) {
      call<PackSymmetric<G, T>>(grad, cells, panel, columns.get());
      call<Panel<S, T>>(static_cast<const T*>(rows.get()), channels, static_cast<const T*>(columns.get()),
                        cells, panel, cells, scale, out, memory.get());
    }
  });
}

}  // namespace solo_attn::grid_attention
