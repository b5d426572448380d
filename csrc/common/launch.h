// What a .cu file of this library is written against: launching, the current stream, shared memory,
// registration.
//
// nvcc compiles it for GPUs. The tests compile the same file with a C++ compiler and SOLO_ATTN_SHIM, where
// tests/cuda_shim plays the GPU on CPU tensors: that proves the logic, and no more.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "check.h"
#include "describe.h"
#include "dtypes.h"
#include "host_device.h"

#if defined(SOLO_ATTN_SHIM)

#include <cuda_shim.h>

#define SOLO_ATTN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(solo_attn_shim, CPU, m)
#define SOLO_ATTN_SHARED(name, ...) auto& name = ::shim::static_shared<__VA_ARGS__, __COUNTER__>()
#define SOLO_ATTN_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::shim::dynamic_shared())

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

// Weak, so that an extension built for CUDA loads into a torch without it and serves CPU tensors there.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

// At the end of a file: SOLO_ATTN_CUDA_LIBRARY(m) { m.impl("<op>", TORCH_BOX(&<op>_cuda)); }
#define SOLO_ATTN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(solo_attn, CUDA, m)
// Shared memory of a fixed size: SOLO_ATTN_SHARED(tile, float[32][33]);
#define SOLO_ATTN_SHARED(name, ...) __shared__::solo_attn::Same<__VA_ARGS__> name
// That of the launch's `shared` bytes, aligned to 16, as a T*.
#define SOLO_ATTN_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char solo_attn_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(solo_attn_dynamic_shared)

#endif

namespace solo_attn {

template <class T>
using Same = T;

#if defined(SOLO_ATTN_SHIM)
constexpr bool kPlayed = true;
#else
constexpr bool kPlayed = false;
#endif

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class I>
SOLO_ATTN_HOST_DEVICE constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// The device that a kernel's tensors are on, made the current one while this lives, and its current stream.
class Device {
 public:
#if defined(SOLO_ATTN_SHIM)
  explicit Device(const Tensor&) {}
  static bool holds(const Tensor& x) { return x.is_cpu(); }
#else
  explicit Device(const Tensor& x) : guard_(x.get_device_index()) {
    check(aoti_torch_get_current_cuda_stream != nullptr, "solo_attn: this torch is built without CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  static bool holds(const Tensor& x) { return x.is_cuda(); }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
#endif
};

// Runs kernel<<<grid, block, shared>>>(args...) on the device's current stream. An empty grid runs nothing.
// Blocks are of whole warps.
template <class... Parameters, class... Args>
void launch(const Device& device, const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared, Args&&... args) {
  static_assert(sizeof...(Parameters) == sizeof...(Args));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check(grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535, op,
        ": expected sizes that need at most [2147483647, 65535, 65535] blocks, got [", grid.x, ", ", grid.y,
        ", ", grid.z, "]");
  std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Args>(args))...);
#if defined(SOLO_ATTN_SHIM)
  ::shim::run(op, grid, block, shared, [&] { std::apply(kernel, values); });
#else
  const auto* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  // Beyond 48 KB, those of a fixed size among them, a GPU gives only what it is asked for. Those of a fixed
  // size alone are never more: nvcc sees to it.
  if (shared > 0) {
    error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  }
  if (error == cudaSuccess) {
    error = std::apply(
        [&](auto&... value) {
          void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
          return cudaLaunchKernel(function, grid, block, pointers, shared, device.stream());
        },
        values);
  }
  if (error != cudaSuccess) cudaGetLastError();  // it is told here; the next call starts clean
  check(error == cudaSuccess, op, ": a CUDA kernel could not be launched: ", cudaGetErrorString(error));
#endif
}

// `x` must be where `like` is.
inline void check_on_device(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  check(Device::holds(x) && x.get_device_index() == like.get_device_index(), op, ": expected ", name,
        " on the device of the other tensors, ", device_name(like), ", got ", device_name(x));
}

}  // namespace solo_attn
