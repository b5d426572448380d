// Kernels with a fault each, for the shim to find, and a few without.
#include "../../csrc/common/ptx.h"
#include "../../csrc/common/reduce.h"

namespace solo_attn::faults {
namespace {

constexpr int kThreads = 128;

enum Fault : int64_t {
  none,
  no_barrier,
  no_second_barrier,
  barrier_for_some,
  two_barriers,
  returned,
  exchange_for_some,
  not_waited,
  not_written,
  same_word,
  same_word_of_blocks,
  beyond_shared,
  beyond_global,
  overflow,
};

// Reverses each block's 128 numbers.
__global__ void __launch_bounds__(kThreads)
    reverse_kernel(const int* in, int* out, int count, int64_t fault) {
  SOLO_ATTN_SHARED(tile, int[kThreads]);
  SOLO_ATTN_DYNAMIC_SHARED(int, copies);
  const int mine = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kThreads;
  if (fault == returned && mine == 77) return;
  if (mine % 4 == 0) copy_async(copies + mine, in + first + mine);
  copy_async_commit();
  if (fault != not_written || mine != 5) tile[mine] = in[first + mine];
  if (fault == beyond_shared) copies[mine + 4] = 0;
  if (fault == overflow) tile[mine] += 0x7fffffff;
  if (fault != not_waited) copy_async_wait<0>();
  if (fault == barrier_for_some) {
    if (mine < 64) __syncthreads();
  } else if (fault == two_barriers && mine < 64) {
    __syncthreads();
  } else if (fault != no_barrier) {
    __syncthreads();
  }
  int value = tile[kThreads - 1 - mine];
  if (copies[kThreads - 1 - mine] != value) value = -1;
  if (fault != no_second_barrier) __syncthreads();
  tile[mine] = value;
  if (fault != exchange_for_some || mine % 32 < 30) value = __shfl_xor_sync(kAllLanes, value, 1);
  value = __shfl_xor_sync(kAllLanes, value, 1);
  if (fault == exchange_for_some) value = 0;
  const int to = fault == same_word ? first : fault == same_word_of_blocks ? mine : first + mine;
  if (to < count || fault == beyond_global) out[to + (fault == beyond_global ? kThreads : 0)] = value;
}

Tensor reverse(const Tensor& x, int64_t fault) {
  const Device device(x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  launch(device, "reverse", reverse_kernel, dim3(static_cast<unsigned>(x.numel() / kThreads)), dim3(kThreads),
         kThreads * sizeof(int), x.const_data_ptr<int>(), out.mutable_data_ptr<int>(), x.numel(), fault);
  return out;
}

__global__ void __launch_bounds__(kThreads) twice_kernel(const int* in, int* out, bool wait) {
  if (wait) wait_for_previous();
  out[blockIdx.x * kThreads + threadIdx.x] = 2 * in[blockIdx.x * kThreads + threadIdx.x];
}

// 4 x, by two kernels of which the second may begin early. The first asks for more shared memory than the
// second, which the second call of one kernel does not take back.
Tensor twice_early(const Tensor& x, bool wait) {
  const Device device(x);
  Tensor half = torch::stable::new_empty(x, x.sizes()), out = torch::stable::new_empty(x, x.sizes());
  const dim3 grid(static_cast<unsigned>(x.numel() / kThreads));
  launch(device, "twice", twice_kernel, grid, dim3(kThreads), 512, x.const_data_ptr<int>(),
         half.mutable_data_ptr<int>(), true);
  launch_as(Start::early, device, "twice", twice_kernel, grid, dim3(kThreads), 256,
            half.const_data_ptr<int>(), out.mutable_data_ptr<int>(), wait);
  return out;
}

// Each word is written whole, then by bytes, then read whole; `missing` is the barrier that is left out.
__global__ void __launch_bounds__(kThreads) bytes_kernel(const int* in, int* out, int64_t missing) {
  SOLO_ATTN_SHARED(words, uint32_t[kThreads / 4]);
  const int mine = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kThreads;
  if (mine < kThreads / 4) words[mine] = 0;
  if (missing != 1) __syncthreads();
  reinterpret_cast<unsigned char*>(words)[mine] = static_cast<unsigned char>(in[first + mine]);
  if (missing != 2) __syncthreads();
  out[first + mine] = static_cast<int>(words[mine / 4] >> 8 * (mine % 4) & 255);
}

Tensor bytes_of_words(const Tensor& x, int64_t missing) {
  const Device device(x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  launch(device, "bytes", bytes_kernel, dim3(static_cast<unsigned>(x.numel() / kThreads)), dim3(kThreads), 0,
         x.const_data_ptr<int>(), out.mutable_data_ptr<int>(), missing);
  return out;
}

// The first lanes of each block read a word; when their warp has, the very first of the last block writes it.
__global__ void __launch_bounds__(kThreads) read_by_all_kernel(int* word, int* out, int64_t readers) {
  const int mine = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kThreads;
  if (mine < readers) out[first + mine] = word[0];
  __syncwarp();
  if (mine == 0 && blockIdx.x == gridDim.x - 1) word[0] = 1;
}

Tensor read_by_all(const Tensor& x, int64_t blocks, int64_t readers) {
  const Device device(x);
  Tensor word = torch::stable::new_zeros(x, {1}), out = torch::stable::new_zeros(x, {blocks * kThreads});
  launch(device, "read_by_all", read_by_all_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         word.mutable_data_ptr<int>(), out.mutable_data_ptr<int>(), readers);
  return out;
}

// Each block counts its lanes; one of the last block's reads the count when its own block is through.
__global__ void __launch_bounds__(kThreads) counted_kernel(int* count, int* out) {
  atomicAdd(count, 1);
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1) out[0] = count[0];
}

Tensor counted(const Tensor& x, int64_t blocks) {
  const Device device(x);
  Tensor count = torch::stable::new_zeros(x, {1}), out = torch::stable::new_empty(x, {1});
  launch(device, "counted", counted_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         count.mutable_data_ptr<int>(), out.mutable_data_ptr<int>());
  return out;
}

// C [16, 8] = A [16, depth] B [8, depth]^T by one mma.
template <class S>
__global__ void __launch_bounds__(kWarp) product_kernel(const uint32_t* a, const uint32_t* b, float* out) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t left[4], right[2];
  for (int k = 0; k < 4; ++k) left[k] = a[(g + k % 2 * 8) * 8 + t + k / 2 * 4];
  for (int k = 0; k < 2; ++k) right[k] = b[g * 8 + t + k * 4];
  if constexpr (std::is_same_v<S, Tf32>) {
    for (uint32_t& x : left) x = to_tf32(__uint_as_float(x));
    for (uint32_t& x : right) x = to_tf32(__uint_as_float(x));
  }
  std::conditional_t<std::is_same_v<S, Bits>, int, float> sum[4] = {};
  mma(Type<S>{}, sum, left, right);
  for (int k = 0; k < 4; ++k) out[(g + k / 2 * 8) * 8 + 2 * t + k % 2] = static_cast<float>(sum[k]);
}

Tensor product(const Tensor& a, const Tensor& b) {
  const Device device(a);
  Tensor out = torch::stable::new_empty(a, {16, 8}, ScalarType::Float);
  const auto run = [&](auto kernel) {
    launch(device, "product", kernel, dim3(1), dim3(kWarp), 0,
           static_cast<const uint32_t*>(a.const_data_ptr()), static_cast<const uint32_t*>(b.const_data_ptr()),
           out.mutable_data_ptr<float>());
  };
  switch (a.scalar_type()) {
    case ScalarType::Half:
      run(product_kernel<Half>);
      break;
    case ScalarType::BFloat16:
      run(product_kernel<BFloat16>);
      break;
    case ScalarType::Float:
      run(product_kernel<Tf32>);
      break;
    default:
      run(product_kernel<Bits>);
  }
  return out;
}

// Block sums by atomics and by exchange; out: [total, largest, sum of each block...].
__global__ void __launch_bounds__(kThreads) sums_kernel(const int* in, int* out) {
  SOLO_ATTN_SHARED(parts, int[kThreads / kWarp]);
  const int x = in[blockIdx.x * kThreads + threadIdx.x];
  atomicAdd(out, x);
  atomicMax(out + 1, x);
  const int sum = block_sum(x, parts);
  if (threadIdx.x == 0) out[2 + blockIdx.x] = sum;
}

Tensor sums(const Tensor& x) {
  const Device device(x);
  const int64_t blocks = x.numel() / kThreads;
  Tensor out = torch::stable::new_zeros(x, {2 + blocks});
  launch(device, "sums", sums_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         x.const_data_ptr<int>(), out.mutable_data_ptr<int>());
  return out;
}

}  // namespace
}  // namespace solo_attn::faults

SOLO_ATTN_CUDA_LIBRARY(m) {
  m.impl("reverse", TORCH_BOX(&solo_attn::faults::reverse));
  m.impl("bytes_of_words", TORCH_BOX(&solo_attn::faults::bytes_of_words));
  m.impl("read_by_all", TORCH_BOX(&solo_attn::faults::read_by_all));
  m.impl("counted", TORCH_BOX(&solo_attn::faults::counted));
  m.impl("product", TORCH_BOX(&solo_attn::faults::product));
  m.impl("twice_early", TORCH_BOX(&solo_attn::faults::twice_early));
  m.impl("sums", TORCH_BOX(&solo_attn::faults::sums));
}
