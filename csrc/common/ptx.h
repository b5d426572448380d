// Instructions that C++ has no name for: tensor cores, asynchronous copies to shared memory, kernels that
// start before the previous one has ended, fast approximations. nvcc compiles the instruction, the tests'
// emulator an equivalent in plain C++.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "launch.h"

namespace solo_attn {

// mma: C [16, 8] += A [16, depth] B [depth, 8], by all lanes of a warp. With g = lane / 4 and t = lane % 4, a
// lane holds
//   of C, float:  (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   half precision, depth 16, two elements in a word, the first low:
//     of A:  (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)      of B:  (2t.., g), (2t + 8.., g)
//   tf32, depth 8, a float in a word, made by to_tf32; bits, depth 8 words of 32, C an int of common bits:
//     of A:  (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)                  of B:  (t, g), (t + 4, g)
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A float32 of which products use the upper 10 bits of the mantissa; their sums are float32.
struct Tf32 {
  Tf32() = default;
  SOLO_ATTN_HOST_DEVICE explicit Tf32(float x) : value(x) {}
  SOLO_ATTN_HOST_DEVICE explicit operator float() const { return value; }

  float value;
};
struct Bits {};

#if !defined(SOLO_ATTN_SHIM)

#define SOLO_ATTN_MMA(shape, types)                                                   \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." types                        \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

__device__ __forceinline__ void mma(Type<Half>, float (&c)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  SOLO_ATTN_MMA("m16n8k16", "f16.f16");
}
__device__ __forceinline__ void mma(Type<BFloat16>, float (&c)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  SOLO_ATTN_MMA("m16n8k16", "bf16.bf16");
}
__device__ __forceinline__ void mma(Type<Tf32>, float (&c)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  SOLO_ATTN_MMA("m16n8k8", "tf32.tf32");
}
#undef SOLO_ATTN_MMA

// One instruction up to compute capability 9.0; from 10.0 on the compiler emulates it by products of bytes.
__device__ __forceinline__ void mma(Type<Bits>, int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounded to the 10 bits of mantissa that tensor cores read, which would truncate the others.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return word;
}

// 2^x and 1 / x with an error of one or two units in the last place; denormals become 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Starts a copy of 16 bytes (or 4, or 8) between addresses aligned to as many. The first `bytes` are copied,
// and the rest is filled with 0.
template <int kBytes = 16>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes = kBytes) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
// Waits until all but the last `left` committed groups of this lane have arrived; other lanes also need a
// barrier.
template <int left>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// Four 8 x 8 matrices of half precision, transposed: lane l gives the address of row l % 8 of matrix l / 8,
// 16 bytes aligned to 16, and gets of each matrix the words (row 2t.., column g), with g = l / 4, t = l % 4.
__device__ __forceinline__ void load_turned(uint32_t (&words)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared)))
               : "memory");
}

// A compiler barrier: no access to memory is moved across it.
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

// See Start in launch.h. Code for architectures before 9.0 is never launched early.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Where `good` is false: ends the kernel with cudaErrorAssert and this text, as PyTorch's own indexing does.
#define SOLO_ATTN_DEVICE_ASSERT(good, text) \
  if (!(good)) __assert_fail(text, "csrc", __LINE__, "")

#else

template <class S, class C>
SHIM_UNINSTRUMENTED void mma(Type<S>, C (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr bool half = std::is_same_v<S, Half> || std::is_same_v<S, BFloat16>;
  constexpr uint32_t kRead = ~0x1fffu;  // the bits of a tf32 that tensor cores read
  const auto pair = [](uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; };
  const uint64_t mine[3] = {pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1])};
  const uint64_t* all = ::shim::sync_warp(kAllLanes, mine, 3, __LINE__);
  const auto word = [&](int lane, int k) {
    return static_cast<uint32_t>(all[3 * lane + k / 2] >> k % 2 * 32);
  };
  const int g = static_cast<int>(::shim::lane()) / 4, t = static_cast<int>(::shim::lane()) % 4;
  for (int k = 0; k < 4; ++k) {
    // The sum is exact here until it is truncated, as on tensor cores, which do not round; how many more bits
    // theirs keep is not documented.
    auto sum = static_cast<double>(c[k]);
    for (int w = 0; w < 8; ++w) {  // of the depth
      const uint32_t x = word(4 * g + w % 4, k / 2 + w / 4 * 2),
                     y = word(8 * t + k % 2 * 4 + w % 4, 4 + w / 4);
      if constexpr (std::is_same_v<S, Bits>) {
        c[k] += __popc(x & y);
      } else if constexpr (half) {
        for (int high = 0; high < 32; high += 16) {
          sum += static_cast<double>(static_cast<float>(::shim::from_word<S>(x >> high & 0xffff))) *
                 static_cast<double>(static_cast<float>(::shim::from_word<S>(y >> high & 0xffff)));
        }
      } else {
        sum += static_cast<double>(__uint_as_float(x & kRead)) * __uint_as_float(y & kRead);
      }
    }
    if constexpr (!std::is_same_v<S, Bits>) c[k] = ::shim::cut_off(sum);
  }
}

inline uint32_t to_tf32(float x) {
  const uint32_t word = __float_as_uint(x);
  return (word & 0x7f800000u) == 0x7f800000u ? word : (word + 0x1000u) & ~0x1fffu;
}

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_reciprocal(float x) { return 1 / x; }

inline void load_turned(uint32_t (&words)[4], const void* shared) {
  const uint64_t* all = ::shim::sync_warp(kAllLanes, reinterpret_cast<uintptr_t>(shared), __LINE__);
  const void* rows[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) rows[lane] = reinterpret_cast<const void*>(all[lane]);
  const int g = static_cast<int>(::shim::lane()) / 4, t = static_cast<int>(::shim::lane()) % 4;
  for (int k = 0; k < 4; ++k) {
    const auto* low = static_cast<const uint16_t*>(rows[8 * k + 2 * t]);
    const auto* high = static_cast<const uint16_t*>(rows[8 * k + 2 * t + 1]);
    words[k] = static_cast<uint32_t>(low[g]) | static_cast<uint32_t>(high[g]) << 16;
  }
}

inline void keep_order() {}
inline void let_next_start() {}
inline void wait_for_previous() { ::shim::wait_for_previous(); }

// The emulator continues: tests look at what a kernel does after the point where a GPU stops it.
#define SOLO_ATTN_DEVICE_ASSERT(good, text) ::shim::device_assert(good, text)

template <int kBytes = 16>
void copy_async(void* shared, const void* global, int bytes = kBytes) {
  ::shim::copy_async(shared, global, kBytes, bytes);
}
inline void copy_async_commit() { ::shim::copy_async_commit(); }
template <int left>
void copy_async_wait() {
  ::shim::copy_async_wait(left);
}

#endif

}  // namespace solo_attn
