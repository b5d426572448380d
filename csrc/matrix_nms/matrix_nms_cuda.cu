// Three launches for n masks of P pixels, none of which waits for the host:
//
// 1. prepare, a block per mask: counts the masks before it in the order (by label, then by score), and writes
//    its bits at that position. Reads P bytes per mask, or P / 8; writes P / 8.
// 2. overlaps, a block per 32 x 32 tile of pairs that contains two masks of one label: their common bits by
//    tensor cores (32,768 products of bits per instruction), the IoUs d_ij, and c_j by atomic maximum.
// 3. decay, a warp per mask.
//
// Memory does not grow with n^2: 2 and 3 run once for each panel of masks whose IoUs with all others fill
// kHeldBytes. Bits are not packed by ballots: loads of 16 bytes per lane and a multiplication need a
// sixteenth of the loads. Words do not go through shared memory: a tile's rows are read as 16 bytes per lane,
// and the L1 cache holds what a block reads twice.
#include <algorithm>
#include <string>
#include <tuple>

#include "../common/pack.h"
#include "../common/ptx.h"
#include "../common/reduce.h"
#include "matrix_nms.h"
#include "matrix_nms_arguments.h"

namespace solo_attn::matrix_nms {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTile = 32;
constexpr int kChunk = 16;  // words of 32 bits of a row that four lanes read at a time; rows are padded to it
constexpr int kPitch =
    kTile + 8;  // of a tile in shared memory: the eight rows of a fragment have no bank conflict
constexpr int64_t kHeldBytes = kPlayed ? 16 << 10 : 64 << 20;  // the emulator's masks are few

// By place in the order.
template <class T>
struct Masks {
  int64_t count;
  int64_t words;   // of a row of bits, a multiple of kChunk
  uint32_t* bits;  // [count, words]
  int* source;     // which mask of the input it is
  int* group;      // the first place of its label
  int* area;
  T* worst;  // c_j
};

// Packs a row of bytes, or copies a row of words; returns the number of bits that this lane has set.
template <bool kBytes>
__device__ __forceinline__ int write_row(const void* masks, int64_t offset, int64_t width, int64_t words,
                                         uint32_t* to) {
  int area = 0;
  if constexpr (kBytes) {
    const auto* from = static_cast<const uint8_t*>(masks) + offset;
    auto* halves = reinterpret_cast<uint16_t*>(to);
    const auto put = [&](int half, uint32_t bits) {
      halves[half] = static_cast<uint16_t>(bits);
      area += __popc(bits);
    };
    // 16 pixels at a time, with four loads in flight; then the remaining pixels one by one.
    const int whole = reinterpret_cast<uintptr_t>(from) % 16 == 0 ? static_cast<int>(width / 16) : 0;
    for (int first = threadIdx.x; first < whole; first += 4 * kThreads) {
      ulonglong2 read[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int half = min(first + k * kThreads, whole - 1);
        read[k] = *reinterpret_cast<const ulonglong2*>(from + int64_t(16) * half);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int half = first + k * kThreads;
        if (half < whole) put(half, pack8(read[k].x) | pack8(read[k].y) << 8);
      }
    }
#pragma unroll 1
    for (int half = whole + threadIdx.x; half < static_cast<int>(2 * words); half += kThreads) {
      uint32_t bits = 0;
      const int64_t begin = int64_t(16) * half;
#pragma unroll 1
      for (int64_t at = begin; at < min(begin + 16, width); ++at) {
        bits |= (from[at] != 0 ? 1u : 0u) << (at - begin);
      }
      put(half, bits);
    }
  } else {
    const auto* from = static_cast<const uint32_t*>(masks) + 2 * offset;
    for (int64_t w = threadIdx.x; w < words; w += kThreads) {
      const uint32_t word = w < 2 * width ? from[w] : 0;
      to[w] = word;
      area += __popc(word);
    }
  }
  return area;
}

template <class S, class T, bool kBytes>
__global__ void __launch_bounds__(kThreads, 5)
    matrix_nms_prepare_kernel(const void* masks, int64_t stride, int64_t width, const int64_t* labels,
                              const S* scores, Masks<T> out) {
  SOLO_ATTN_SHARED(parts, int[kWarps]);
  const int64_t mine = blockIdx.x, label = labels[mine];
  const auto score = static_cast<T>(scores[mine]);
  int first = 0, before = 0, peers = 0;
  for (int64_t i = threadIdx.x; i < out.count; i += kThreads) {
    const int64_t other = labels[i];
    first += other < label;
    if (other == label) {
      ++peers;
      before += better(static_cast<T>(scores[i]), i, score, mine);
    }
  }
  first = block_sum(first, parts);
  before = block_sum(before, parts);
  peers = block_sum(peers, parts);
  const int64_t place = first + before;
  // A mask that is the only one of its label overlaps nothing, and is not read: its bits are 0.
  if (peers == 1) width = 0;
  const int area = block_sum(
      write_row<kBytes>(masks, mine * stride, width, out.words, out.bits + place * out.words), parts);
  if (threadIdx.x == 0) {
    out.source[place] = static_cast<int>(mine);
    out.group[place] = first;
    out.area[place] = area;
    out.worst[place] = 0;
  }
}

// IoUs are not negative, and such floats have the order of the integers with the same bits.
__device__ __forceinline__ void atomic_max(float* address, float x) {
  atomicMax(reinterpret_cast<int*>(address), __float_as_int(x));
}
__device__ __forceinline__ void atomic_max(double* address, double x) {
  atomicMax(reinterpret_cast<long long*>(address), __double_as_longlong(x));
}

// Common bits of masks j and i, rows and columns of a tile, over every kWarps-th chunk of their words. A
// count does not depend on the order of the words within a chunk, if it is the same for i and j: a lane reads
// four adjacent words, which are the fragments of two products.
__device__ __forceinline__ void count_common(const uint32_t* bits, int64_t words, int64_t count, int64_t j,
                                             int64_t i, int (&common)[2][4][4]) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t *rows[4], *columns[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {  // past the end the last mask is read; its results are not stored
    rows[k] = bits + min(j + 8 * k + lane / 4, count - 1) * words + lane % 4 * 4;
    columns[k] = bits + min(i + 8 * k + lane / 4, count - 1) * words + lane % 4 * 4;
  }
#pragma unroll 1
  for (int64_t w = threadIdx.x / kWarp * kChunk; w < words; w += kWarps * kChunk) {
    uint4 row[4], column[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      row[k] = *reinterpret_cast<const uint4*>(rows[k] + w);
      column[k] = *reinterpret_cast<const uint4*>(columns[k] + w);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const uint4 low = row[2 * r], high = row[2 * r + 1];
        mma(Type<Bits>{}, common[r][c], {low.x, high.x, low.y, high.y}, {column[c].x, column[c].y});
        mma(Type<Bits>{}, common[r][c], {low.z, high.z, low.w, high.w}, {column[c].z, column[c].w});
      }
    }
  }
}

// Tile (blockIdx.y of the panel, blockIdx.x): overlap[j - panel, i] for i < j of one label, and c_j.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    matrix_nms_overlaps_kernel(Masks<T> masks, int64_t panel, T* overlap) {
  SOLO_ATTN_SHARED(parts, int[kWarps][kTile * kPitch]);
  const int64_t j0 = panel + int64_t(blockIdx.y) * kTile, i0 = int64_t(blockIdx.x) * kTile;
  if (i0 > j0 || masks.group[j0] > i0 + kTile - 1) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int common[2][4][4] = {};
  count_common(masks.bits, masks.words, masks.count, j0, i0, common);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        const int row = 16 * r + 4 * k + lane / 4, column = 8 * c + lane % 4 * 2;
        *reinterpret_cast<int2*>(&parts[warp][row * kPitch + column]) = {common[r][c][k],
                                                                         common[r][c][k + 1]};
      }
    }
  }
  __syncthreads();
  const int64_t i = i0 + lane;
  const int area = masks.area[min(i, masks.count - 1)];
#pragma unroll
  for (int row = warp; row < kTile; row += kWarps) {
    const int64_t j = j0 + row;
    int both = 0;
#pragma unroll
    for (int k = 0; k < kWarps; ++k) both += parts[k][row * kPitch + lane];
    T d = 0;
    if (j < masks.count && i < j && masks.group[j] <= i) {
      if (both != 0) d = iou<T>(both, area, masks.area[j]);
      overlap[(j - panel) * masks.count + i] = d;
    }
    d = warp_reduce(d, [](T a, T b) { return max(a, b); });
    if (lane == 0 && d > 0) atomic_max(masks.worst + j, d);
  }
}

template <class S, class T, class Kernel>
__global__ void __launch_bounds__(kThreads)
    matrix_nms_decay_kernel(Masks<T> masks, int64_t panel, int64_t end, const T* overlap, Kernel kernel,
                            const S* scores, S* decayed, T* decay) {
  const int64_t j = panel + int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (j >= end) return;
  const int lane = threadIdx.x % kWarp;
  const T* row = overlap + (j - panel) * masks.count;
  T least = Kernel::neutral();
  for (int64_t i = masks.group[j] + lane; i < j; i += kWarp) {
    least = min(least, Kernel::bind(row[i], masks.worst[i]));
  }
  least = warp_reduce(least, [](T a, T b) { return min(a, b); });
  if (lane == 0) {
    const T factor = kernel.finish(least);
    const int to = masks.source[j];
    decay[to] = factor;
    decayed[to] = static_cast<S>(decayed_score(static_cast<T>(scores[to]), factor));
  }
}

template <class S, class T, class Kernel>
void run(const Device& device, const Tensor& masks, const Tensor& labels, const Tensor& scores, Kernel kernel,
         Tensor& decayed, Tensor& decay) {
  const char* op = "matrix_nms";
  const int64_t count = scores.size(0), width = masks.size(1);
  const bool packed = masks.scalar_type() == ScalarType::Long;
  const int64_t words = ceil_div<int64_t>(packed ? 2 * width : ceil_div<int64_t>(width, 32), kChunk) * kChunk;
  const auto fresh = [&](ScalarType dtype, int64_t rows, int64_t columns) {
    return torch::stable::new_empty(scores, {rows, columns}, dtype);
  };
  Tensor bits = fresh(ScalarType::Int, count, words), places = fresh(ScalarType::Int, 3, count);
  Tensor worst = fresh(decay.scalar_type(), 1, count);
  int* place = places.mutable_data_ptr<int>();
  const Masks<T> sorted{count,
                        words,
                        static_cast<uint32_t*>(bits.mutable_data_ptr()),
                        place,
                        place + count,
                        place + 2 * count,
                        worst.mutable_data_ptr<T>()};
  const auto* score = scores.const_data_ptr<S>();
  launch(device, op, packed ? matrix_nms_prepare_kernel<S, T, false> : matrix_nms_prepare_kernel<S, T, true>,
         dim3(static_cast<unsigned>(count)), dim3(kThreads), 0, masks.const_data_ptr(), masks.stride(0),
         width, labels.const_data_ptr<int64_t>(), score, sorted);
  const int64_t most = ceil_div<int64_t>(count, kTile) * kTile;
  const int64_t room = kHeldBytes / static_cast<int64_t>(sizeof(T)) / count / kTile * kTile;
  const int64_t height = std::min(most, std::max<int64_t>(kTile, room));
  Tensor overlap = fresh(decay.scalar_type(), height, count);
  auto* overlaps = overlap.mutable_data_ptr<T>();
  for (int64_t panel = 0; panel < count; panel += height) {
    const int64_t end = std::min(count, panel + height);
    const auto columns = static_cast<unsigned>(ceil_div<int64_t>(end, kTile));
    const auto rows = static_cast<unsigned>(ceil_div<int64_t>(end - panel, kTile));
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(end - panel, kWarps));
    launch(device, op, matrix_nms_overlaps_kernel<T>, dim3(columns, rows), dim3(kThreads), 0, sorted, panel,
           overlaps);
    launch(device, op, matrix_nms_decay_kernel<S, T, Kernel>, dim3(blocks), dim3(kThreads), 0, sorted, panel,
           end, overlaps, kernel, score, decayed.mutable_data_ptr<S>(), decay.mutable_data_ptr<T>());
  }
}

std::tuple<Tensor, Tensor> matrix_nms_cuda(const Tensor& masks, const Tensor& labels, const Tensor& scores,
                                           const std::string& kernel, double sigma) {
  const char* op = "matrix_nms";
  check_arguments(masks, labels, scores, kernel);
  check_on_device(op, "masks", masks, scores);
  check_on_device(op, "labels", labels, scores);
  constexpr int64_t kMost = 0x7fffffff;  // places and areas are 32 bits
  check(masks.size(0) <= kMost &&
            masks.size(1) <= (masks.scalar_type() == ScalarType::Long ? kMost / 64 : kMost),
        op, ": expected masks of fewer than 2^31 rows and pixels, got [", masks.size(0), ", ", masks.size(1),
        "]");
  const Device device(scores);
  // Rows may be equal or far apart in memory, but each must be contiguous.
  const Tensor rows = masks.stride(1) == 1 ? masks : torch::stable::contiguous(masks);
  const Tensor label = torch::stable::contiguous(labels), score = torch::stable::contiguous(scores);
  Tensor decayed = torch::stable::new_empty(score, scores.sizes());
  Tensor decay = torch::stable::new_empty(score, scores.sizes(), accumulator_dtype(scores.scalar_type()));
  if (scores.size(0) == 0) return {decayed, decay};
  dispatch_float(op, scores.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulator_t<S>;
    if (kernel == "linear") {
      run<S, T>(device, rows, label, score, Linear<T>{}, decayed, decay);
    } else {
      run<S, T>(device, rows, label, score, Gaussian<T>{static_cast<T>(sigma)}, decayed, decay);
    }
  });
  return {decayed, decay};
}

}  // namespace
}  // namespace solo_attn::matrix_nms

SOLO_ATTN_CUDA_LIBRARY(m) { m.impl("matrix_nms", TORCH_BOX(&solo_attn::matrix_nms::matrix_nms_cuda)); }
