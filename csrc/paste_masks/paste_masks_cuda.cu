// K cells, from their map at stride 4 (h x w) to 4 h x 4 w, cropped, and to H x W of the original image.
//
// Bytes: H W per mask are written, 210 MB for 100 masks at 1024 x 2048, 49 us at an H200's 4.3 TB/s. The maps
// are computed once (maps.cuh), kMapPixels of them at a time, which stay in the L2 cache. A pixel then takes
// some ten instructions, and interpolating a row of a map along x ten more for every fifth pixel (paste.cuh);
// where nothing can be set, only the store. 16 pixels are stored by one instruction.
//
// Run lengths go down columns, one thread per column: it keeps 32 rows of each of its columns in a word. A
// block per mask counts the changes of its columns, from which follows where each column writes them. Their
// number is not known before, so the host waits for it, and then for the changes, of which it makes text.
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/reduce.h"
#include "maps.cuh"
#include "paste.cuh"
#include "paste_masks.h"
#include "paste_masks_arguments.h"

namespace solo_attn::paste_masks {
namespace {

constexpr int64_t kRunPixels = int64_t(1) << (kPlayed ? 13 : 31);  // whose bits are stored at a time
constexpr int kThreads = 256;                                      // that count and write changes

// Expands four bits to four bytes of 0 or 1.
__device__ __forceinline__ uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// Stores kStore pixels by one instruction: all of a thread's, four, or one.
template <class T, int kStore>
__global__ void __launch_bounds__(kPasteThreads, kPasteBlocks)
    paste_masks_fwd_kernel(PasteMaps<T> maps, WalkPlan plan, T threshold, uint8_t* masks) {
  SOLO_ATTN_DYNAMIC_SHARED(PasteColumns<T>, columns);
  SOLO_ATTN_SHARED(taps, PasteTap<T>[kPasteRows]);
  constexpr int kColumns = kPasteColumns<T>;
  const WalkPlace place(plan, kColumns, blockIdx.x);
  const int left = plan.width - place.x;
  uint8_t* to = masks + (place.cell * plan.height + place.begin) * plan.width + place.x;
  walk_pasted(maps, place, threshold, *columns, taps, [&](int, uint32_t bits) {
    if constexpr (kStore == kColumns) {
      uint32_t words[kColumns / 4];
#pragma unroll
      for (int k = 0; k < kColumns / 4; ++k) words[k] = spread(bits >> 4 * k);
      Run<uint8_t, kColumns> run;
      memcpy(&run, words, kColumns);
      if (left > 0) store_once(to, run);
    } else if constexpr (kStore == 4) {
#pragma unroll
      for (int j = 0; j < kColumns; j += 4) {
        if (j < left) *reinterpret_cast<uint32_t*>(to + j) = spread(bits >> j);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (j < left) to[j] = static_cast<uint8_t>(bits >> j & 1);
      }
    }
    to += plan.width;
  });
}

// Bits of columns, [count, ceil(H / 32), W]: bit b of word w of a column is row 32 w + b.
template <class T>
__global__ void __launch_bounds__(kPasteThreads, 2)
    paste_masks_columns_kernel(PasteMaps<T> maps, WalkPlan plan, T threshold, uint32_t* words) {
  SOLO_ATTN_DYNAMIC_SHARED(PasteColumns<T>, columns);
  SOLO_ATTN_SHARED(taps, PasteTap<T>[kPasteRows]);
  constexpr int kColumns = kPasteColumns<T>;
  const WalkPlace place(plan, kColumns, blockIdx.x);
  const int left = plan.width - place.x;
  uint32_t* to = words + (place.cell * ceil_div(plan.height, 32) + place.begin / 32) * plan.width + place.x;
  uint32_t word[kColumns] = {};
  walk_pasted(maps, place, threshold, *columns, taps, [&](int y, uint32_t bits) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) word[j] |= (bits >> j & 1) << y % 32;
    if (y % 32 != 31 && y != place.end - 1) return;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (j < left) to[j] = word[j];
      word[j] = 0;
    }
    to += plan.width;
  });
}

struct ColumnBits {
  const uint32_t* words;
  int64_t height;
  int64_t width;

  // Calls change(w, the bits of word w that differ from the pixel before) for a column. The pixel before the
  // first one of a mask counts as not set.
  template <class F>
  __device__ __forceinline__ void changes(int64_t mask, int64_t x, const F& change) const {
    const int64_t tall = ceil_div<int64_t>(height, 32);
    const uint32_t* column = words + mask * tall * width + x;
    uint32_t before = x == 0 ? 0 : column[(tall - 1) * width - 1] >> (height - 1) % 32 & 1;
    for (int64_t w = 0; w < tall; ++w) {
      const uint32_t word = column[w * width];
      const int64_t rows = min(int64_t(32), height - w * 32);
      change(w, (word ^ (word << 1 | before)) & (rows == 32 ? ~0u : (1u << rows) - 1));
      before = word >> 31;
    }
  }
};

// A block per mask: the number of changes before each of its columns, and the total.
__global__ void __launch_bounds__(kThreads)
    paste_masks_count_kernel(ColumnBits bits, int64_t* before, int64_t* totals) {
  SOLO_ATTN_SHARED(parts, int64_t[kThreads / kWarp]);
  const int64_t mask = blockIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t total = 0;
  for (int64_t first = 0; first < bits.width; first += kThreads) {
    const int64_t x = first + threadIdx.x;
    int64_t own = 0;
    if (x < bits.width) bits.changes(mask, x, [&](int64_t, uint32_t change) { own += __popc(change); });
    int64_t until = own;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, until, step);
      if (lane >= step) until += other;
    }
    if (lane == kWarp - 1) parts[warp] = until;
    __syncthreads();
    int64_t sum = total;
    for (int k = 0; k < kThreads / kWarp; ++k) {
      if (k < warp) sum += parts[k];
      total += parts[k];
    }
    if (x < bits.width) before[mask * bits.width + x] = sum + until - own;
    __syncthreads();
  }
  if (threadIdx.x == 0) totals[mask] = total;
}

// Where each mask's changes begin: one block.
__global__ void __launch_bounds__(kWarp)
    paste_masks_begin_kernel(const int64_t* totals, int64_t count, int64_t* begins) {
  const int lane = threadIdx.x;
  int64_t total = 0;
  for (int64_t first = 0; first < count; first += kWarp) {
    const int64_t mask = first + lane;
    int64_t until = mask < count ? totals[mask] : 0;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, until, step);
      if (lane >= step) until += other;
    }
    if (mask < count) begins[mask + 1] = total + until;
    total += __shfl_sync(kAllLanes, until, kWarp - 1);
  }
  if (lane == 0) begins[0] = 0;
}

// The pixels, numbered down the columns, at which masks change.
__global__ void __launch_bounds__(kThreads)
    paste_masks_write_kernel(ColumnBits bits, int64_t count, const int64_t* before, const int64_t* begins,
                             int64_t* places) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count * bits.width) return;
  const int64_t mask = index / bits.width, x = index % bits.width;
  int64_t* to = places + begins[mask] + before[index];
  bits.changes(mask, x, [&](int64_t w, uint32_t change) {
    for (; change != 0; change &= change - 1)
      *to++ = x * bits.height + 32 * w + __ffs(static_cast<int>(change)) - 1;
  });
}

Tensor pixels_of(const Call& call) {
  const int64_t height = call.sizes.original_size[0], width = call.sizes.original_size[1];
  Tensor masks = call.fresh(ScalarType::Bool, {call.count, height, width});
  auto* out = static_cast<uint8_t*>(masks.mutable_data_ptr());
  call.for_maps(call.count, [&](auto maps, int64_t first, int64_t count) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(maps.data)>>;
    const WalkPlan plan = paste_plan<T>(count, height, width, 1);
    constexpr int kAll = kPasteColumns<T>;
    const auto kernel = width % kAll == 0 ? paste_masks_fwd_kernel<T, kAll>
                        : width % 4 == 0  ? paste_masks_fwd_kernel<T, 4>
                                          : paste_masks_fwd_kernel<T, 1>;
    launch(call.device, call.op, kernel, walk_grid(call.op, plan.blocks(count)), dim3(plan.threads),
           sizeof(PasteColumns<T>), maps, plan, call.threshold, out + first * call.original);
  });
  return masks;
}

std::tuple<Tensor, Tensor> runs_of(const Call& call) {
  const int64_t height = call.sizes.original_size[0], width = call.sizes.original_size[1];
  const int64_t tall = ceil_div<int64_t>(height, 32);
  const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
  std::vector<std::string> texts;
  call.for_maps(std::max<int64_t>(1, kRunPixels / call.original), [&](auto maps, int64_t, int64_t count) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(maps.data)>>;
    const WalkPlan plan = paste_plan<T>(count, height, width, 32);
    Tensor words = call.fresh(ScalarType::Int, {count, tall, width});
    Tensor before = call.fresh(ScalarType::Long, {count, width}),
           totals = call.fresh(ScalarType::Long, {count});
    Tensor begins = call.fresh(ScalarType::Long, {count + 1});
    auto* word = static_cast<uint32_t*>(words.mutable_data_ptr());
    launch(call.device, call.op, paste_masks_columns_kernel<T>, walk_grid(call.op, plan.blocks(count)),
           dim3(plan.threads), sizeof(PasteColumns<T>), maps, plan, call.threshold, word);
    const ColumnBits bits{word, height, width};
    auto* columns = before.mutable_data_ptr<int64_t>();
    auto* total = totals.mutable_data_ptr<int64_t>();
    launch(call.device, call.op, paste_masks_count_kernel, walk_grid(call.op, count), dim3(kThreads), 0, bits,
           columns, total);
    launch(call.device, call.op, paste_masks_begin_kernel, dim3(1), dim3(kWarp), 0, total, count,
           begins.mutable_data_ptr<int64_t>());
    const Tensor ends = torch::stable::to(begins, host);
    const auto* end = ends.const_data_ptr<int64_t>();
    Tensor places = call.fresh(ScalarType::Long, {end[count]});
    launch(call.device, call.op, paste_masks_write_kernel,
           walk_grid(call.op, ceil_div<int64_t>(count * width, kThreads)), dim3(kThreads), 0, bits, count,
           columns, begins.mutable_data_ptr<int64_t>(), places.mutable_data_ptr<int64_t>());
    const Tensor found = torch::stable::to(places, host);
    const auto* place = found.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < count; ++k) {
      Runs runs;
      for (int64_t p = end[k]; p < end[k + 1]; ++p) runs.flip(place[p]);
      texts.push_back(runs.finish(call.original));
    }
  });
  return joined(texts);
}

Call one_level(const Tensor& coarse, const std::optional<Tensor>& attention, const Sizes& sizes,
               double threshold) {
  return Call({coarse}, {attention}, std::nullopt, sizes, threshold);
}

Call several(const std::vector<Tensor>& coarse, const std::vector<Tensor>& attention, const Tensor& index,
             const Sizes& sizes, double threshold) {
  return Call(coarse, optional_levels("paste_masks", coarse, attention), index, sizes, threshold);
}

Tensor paste_masks_cuda(const Tensor& coarse, const std::optional<Tensor>& attention, Size size,
                        Size out_size, Size image_size, Size original_size, double threshold) {
  return pixels_of(one_level(coarse, attention, {size, out_size, image_size, original_size}, threshold));
}

std::tuple<Tensor, Tensor> paste_masks_rle_cuda(const Tensor& coarse, const std::optional<Tensor>& attention,
                                                Size size, Size out_size, Size image_size, Size original_size,
                                                double threshold) {
  return runs_of(one_level(coarse, attention, {size, out_size, image_size, original_size}, threshold));
}

Tensor paste_masks_levels_cuda(std::vector<Tensor> coarse, std::vector<Tensor> attention, Size sizes,
                               const Tensor& index, Size out_size, Size image_size, Size original_size,
                               double threshold) {
  return pixels_of(
      several(coarse, attention, index, {sizes, out_size, image_size, original_size}, threshold));
}

std::tuple<Tensor, Tensor> paste_masks_levels_rle_cuda(std::vector<Tensor> coarse,
                                                       std::vector<Tensor> attention, Size sizes,
                                                       const Tensor& index, Size out_size, Size image_size,
                                                       Size original_size, double threshold) {
  return runs_of(several(coarse, attention, index, {sizes, out_size, image_size, original_size}, threshold));
}

}  // namespace
}  // namespace solo_attn::paste_masks

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("paste_masks", TORCH_BOX(&solo_attn::paste_masks::paste_masks_cuda));
  m.impl("paste_masks_rle", TORCH_BOX(&solo_attn::paste_masks::paste_masks_rle_cuda));
  m.impl("paste_masks_levels", TORCH_BOX(&solo_attn::paste_masks::paste_masks_levels_cuda));
  m.impl("paste_masks_levels_rle", TORCH_BOX(&solo_attn::paste_masks::paste_masks_levels_rle_cuda));
}
