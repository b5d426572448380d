// The part of CUDA that csrc/**/*_cuda.cu uses, played on the CPU, for tests of their logic alone.
//
// The lanes of a block are fibers of one thread, blocks run one after the other, both in an order that a seed
// permutes. See shim.cpp and watcher.cpp for what is reported.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

#define SHIM_VECTOR2(T, name, size) \
  struct alignas(size) name {       \
    T x, y;                         \
  };
#define SHIM_VECTOR4(T, name, size) \
  struct alignas(size) name {       \
    T x, y, z, w;                   \
  };
SHIM_VECTOR2(float, float2, 8)
SHIM_VECTOR2(int, int2, 8)
SHIM_VECTOR2(unsigned, uint2, 8)
SHIM_VECTOR2(double, double2, 16)
SHIM_VECTOR2(long long, longlong2, 16)
SHIM_VECTOR2(unsigned long long, ulonglong2, 16)
SHIM_VECTOR4(unsigned char, uchar4, 4)
SHIM_VECTOR4(float, float4, 16)
SHIM_VECTOR4(int, int4, 16)
SHIM_VECTOR4(unsigned, uint4, 16)

namespace shim {

// `early`: lanes may touch what the launch before wrote, or write what it read, once they have waited for it.
void run(const char* op, const void* kernel, dim3 grid, dim3 block, size_t shared, bool early,
         const std::function<void()>& lane);
void wait_for_previous();
// Plays cudaFuncSetAttribute: how much dynamic shared memory a kernel may ask for; not 0 is an error.
int allow(const void* kernel, size_t bytes);

void* shared_memory(int key, size_t bytes);
void* dynamic_shared();
template <class T, int key>
T& static_shared() {
  return *static_cast<T*>(shared_memory(key, sizeof(T)));
}

void sync_block(int line);
// Waits for the lanes of `mask`; then the values that they came with, `count` each, stand in the result, by
// lane, until this lane waits again.
constexpr int kExchanged = 3;  // at most
const uint64_t* sync_warp(unsigned mask, const uint64_t* values, int count, int line);
inline const uint64_t* sync_warp(unsigned mask, uint64_t value, int line) {
  return sync_warp(mask, &value, 1, line);
}
unsigned lane();

// Copies of `size` bytes, of which `bytes` are read, that arrive when they are waited for, and no sooner.
void copy_async(void* shared, const void* global, int size, int bytes);
void copy_async_commit();
void copy_async_wait(int left);

// To the next float towards 0.
inline float cut_off(double x) {
  const auto near = static_cast<float>(x);
  return std::isfinite(near) && std::fabs(static_cast<double>(near)) > std::fabs(x) ? std::nextafterf(near, 0)
                                                                                    : near;
}

// Keeps the text for solo_attn_shim_asserted, and goes on.
void device_assert(bool good, const char* text);

// Before an atomic update, which is no race with another.
void note_atomic(const void* address, size_t bytes);

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace shim

// The line of the caller tells one barrier from another.
#define SHIM_LINE int line = __builtin_LINE()

inline void __syncthreads(SHIM_LINE) { shim::sync_block(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_LINE) { shim::sync_warp(mask, 0, line); }

inline unsigned __ballot_sync(unsigned mask, int predicate, SHIM_LINE) {
  const uint64_t* all = shim::sync_warp(mask, predicate != 0, line);
  unsigned bits = 0;
  for (unsigned k = 0; k < 32; ++k) bits |= (mask >> k & 1 && all[k] ? 1u : 0u) << k;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate, SHIM_LINE) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SHIM_LINE) {
  return __ballot_sync(mask, predicate, line) == mask;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, SHIM_LINE) {
  const uint64_t* all = shim::sync_warp(mask, shim::to_word(value), line);
  const unsigned lane = shim::lane();
  return shim::from_word<T>(all[(lane & ~(width - 1u)) + (from & (width - 1))]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SHIM_LINE) {
  const uint64_t* all = shim::sync_warp(mask, shim::to_word(value), line);
  const unsigned lane = shim::lane(), from = lane ^ bits;
  return shim::from_word<T>(all[from / width <= lane / width ? from : lane]);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SHIM_LINE) {
  const uint64_t* all = shim::sync_warp(mask, shim::to_word(value), line);
  const unsigned lane = shim::lane();
  return shim::from_word<T>(all[lane % width + delta < static_cast<unsigned>(width) ? lane + delta : lane]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SHIM_LINE) {
  const uint64_t* all = shim::sync_warp(mask, shim::to_word(value), line);
  const unsigned lane = shim::lane();
  return shim::from_word<T>(all[lane % width >= delta ? lane - delta : lane]);
}

#define SHIM_UNINSTRUMENTED __attribute__((noinline, no_sanitize("thread")))

template <class T, class F>
SHIM_UNINSTRUMENTED T shim_update(T* address, const F& f) {
  shim::note_atomic(address, sizeof(T));
  const T before = *address;
  *address = f(before);
  return before;
}

template <class T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  return shim_update(address, [=](T before) { return static_cast<T>(before + value); });
}
template <class T>
T atomicMax(T* address, std::common_type_t<T> value) {
  return shim_update(address, [=](T before) { return std::max(before, value); });
}
template <class T>
T atomicMin(T* address, std::common_type_t<T> value) {
  return shim_update(address, [=](T before) { return std::min(before, value); });
}
template <class T>
T atomicOr(T* address, std::common_type_t<T> value) {
  return shim_update(address, [=](T before) { return before | value; });
}
template <class T>
T atomicExch(T* address, std::common_type_t<T> value) {
  return shim_update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return shim_update(address, [=](T before) { return before == expected ? value : before; });
}

inline void __threadfence() {}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float __int_as_float(int x) { return shim::from_word<float>(shim::to_word(x)); }
inline int __float_as_int(float x) { return static_cast<int>(shim::to_word(x)); }
inline long long __double_as_longlong(double x) { return static_cast<long long>(shim::to_word(x)); }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(shim::to_word(x)); }
inline float __uint_as_float(unsigned x) { return shim::from_word<float>(x); }

// CUDA has these for every pair of arithmetic types.
using std::max;
using std::min;
