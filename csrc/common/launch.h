// What every .cu file of this library uses: launches, the current stream, shared memory, registration.
//
// nvcc compiles it for GPUs. Tests compile the same file with a C++ compiler and SOLO_ATTN_SHIM, where
// tests/cuda_shim emulates the GPU on CPU tensors: that tests the logic only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
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

// Weak, so that an extension built for CUDA also loads with a torch without CUDA, and serves CPU tensors
// there.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

// At the end of a file: SOLO_ATTN_CUDA_LIBRARY(m) { m.impl("<op>", TORCH_BOX(&<op>_cuda)); }
#define SOLO_ATTN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(solo_attn, CUDA, m)
// Shared memory of a fixed size: SOLO_ATTN_SHARED(tile, float[32][33]);
#define SOLO_ATTN_SHARED(name, ...) __shared__::solo_attn::Same<__VA_ARGS__> name
// The `shared` bytes of dynamic shared memory of the launch, aligned to 16, as a T*.
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

// The device of a kernel's tensors, which is the current device while this object lives, and its current
// stream.
class Device {
 public:
#if defined(SOLO_ATTN_SHIM)
  explicit Device(const Tensor&) {}
  static bool holds(const Tensor& x) { return x.is_cpu(); }
#else
  explicit Device(const Tensor& x) : guard_(x.get_device_index()), index_(x.get_device_index()) {
    check(aoti_torch_get_current_cuda_stream != nullptr, "solo_attn: this torch is built without CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  static bool holds(const Tensor& x) { return x.is_cuda(); }
  cudaStream_t stream() const { return stream_; }
  int index() const { return index_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int index_;
  cudaStream_t stream_;
#endif
};

// What has been set and looked up for one kernel on one device.
struct KernelState {
  size_t allowed = 0;  // limit of its dynamic shared memory, in bytes
  int version = 0;     // compute capability that its code was compiled for, such as 90; 0: not looked up yet
};

// The state of all kernels, by address and device index. Two threads may launch one kernel with different
// sizes at the same time, so the limit is only ever raised: otherwise the larger launch would fail.
class KernelStates {
 public:
  // Calls allow(bytes) if more than the current limit is needed; a result other than 0 is an error.
  template <class Allow>
  int allow(const void* kernel, int device, size_t wanted, const Allow& allow) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    KernelState& state = states_[{kernel, device}];
    if (wanted <= state.allowed) return 0;
    const int error = allow(wanted);
    if (error == 0) state.allowed = wanted;
    return error;
  }
  template <class Look>
  int version(const void* kernel, int device, const Look& look) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    KernelState& state = states_[{kernel, device}];
    if (state.version == 0) state.version = look();
    return state.version;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<const void*, int>, KernelState> states_;
};

inline KernelStates& kernel_states() {
  static KernelStates states;
  return states;
}

// When a kernel starts: after the previous kernel in the stream has ended, or (`early`) as soon as each block
// of that one has called let_next_start() or ended, if the GPU supports it. An early kernel calls
// wait_for_previous() before it reads or writes anything that the previous one writes, and before it writes
// what that one reads.
enum class Start { in_order, early };

// Runs kernel<<<grid, block, shared>>>(args...) on the device's current stream. An empty grid runs nothing.
// Blocks consist of whole warps.
template <class... Parameters, class... Args>
void launch_as(Start start, const Device& device, const char* op, void (*kernel)(Parameters...), dim3 grid,
               dim3 block, size_t shared, Args&&... args) {
  static_assert(sizeof...(Parameters) == sizeof...(Args));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check(grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535, op,
        ": expected sizes that need at most [2147483647, 65535, 65535] blocks, got [", grid.x, ", ", grid.y,
        ", ", grid.z, "]");
  std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Args>(args))...);
  const auto* function = reinterpret_cast<const void*>(kernel);
#if defined(SOLO_ATTN_SHIM)
  kernel_states().allow(function, 0, shared, [&](size_t bytes) { return ::shim::allow(function, bytes); });
  ::shim::run(op, function, grid, block, shared, start == Start::early, [&] { std::apply(kernel, values); });
#else
  // Above 48 KB, statically sized shared memory included, the limit must be raised first. Static shared
  // memory alone is never above it: nvcc checks that.
  auto error = static_cast<cudaError_t>(
      kernel_states().allow(function, device.index(), shared, [&](size_t bytes) -> int {
        return cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes));
      }));
  // Code for older architectures has no wait_for_previous().
  const bool early = start == Start::early && kernel_states().version(function, device.index(), [&]() -> int {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, function) == cudaSuccess ? attributes.binaryVersion : 1;
  }) >= 90;
  if (error == cudaSuccess) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = device.stream();
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    error = std::apply(
        [&](auto&... value) {
          void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
          return cudaLaunchKernelExC(&config, function, pointers);
        },
        values);
  }
  if (error != cudaSuccess) cudaGetLastError();  // clears it, since it is reported here
  check(error == cudaSuccess, op, ": a CUDA kernel could not be launched: ", cudaGetErrorString(error));
#endif
}

template <class... Parameters, class... Args>
void launch(const Device& device, const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared, Args&&... args) {
  launch_as(Start::in_order, device, op, kernel, grid, block, shared, std::forward<Args>(args)...);
}

// Checks that `x` is on the device of `like`.
inline void check_on_device(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  check(Device::holds(x) && x.get_device_index() == like.get_device_index(), op, ": expected ", name,
        " on the device of the other tensors, ", device_name(like), ", got ", device_name(x));
}

}  // namespace solo_attn
