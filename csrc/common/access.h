// Loads and stores of several elements by one instruction: 16 bytes where they are aligned.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.h"
#include "ptx.h"

namespace solo_attn {

template <class S>
constexpr int kPer16Bytes = 16 / static_cast<int>(sizeof(S));

inline bool aligned16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// kCount elements that one instruction has read or will write.
template <class S, int kCount>
struct alignas(kCount * sizeof(S) < 16 ? kCount * sizeof(S) : 16) Run {
  S at[kCount];
};

template <class S, int kCount>
__device__ __forceinline__ Run<S, kCount> load(const S* from) {
  Run<S, kCount> run;
  if constexpr (sizeof(run) % 16 == 0) {
    uint4 words[sizeof(run) / 16];
    for (int k = 0; k < static_cast<int>(sizeof(run)) / 16; ++k) {
      words[k] = reinterpret_cast<const uint4*>(from)[k];
    }
    memcpy(&run, words, sizeof(run));
  } else {
    run = *reinterpret_cast<const Run<S, kCount>*>(from);
  }
  return run;
}

// The same for data that is read once: the caches evict it first.
template <class S, int kCount>
__device__ __forceinline__ Run<S, kCount> load_once(const S* from) {
#if !defined(SOLO_ATTN_SHIM)
  Run<S, kCount> run;
  if constexpr (sizeof(run) == 16) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
    memcpy(&run, &words, sizeof(run));
    return run;
  }
#endif
  return load<S, kCount>(from);
}

template <class S, int kCount>
__device__ __forceinline__ void store_once(S* to, const Run<S, kCount>& run) {
  if constexpr (sizeof(run) == 16) {
    uint4 words;
    memcpy(&words, &run, sizeof(run));
#if defined(SOLO_ATTN_SHIM)
    *reinterpret_cast<uint4*>(to) = words;
#else
    __stcs(reinterpret_cast<uint4*>(to), words);
#endif
  } else {
    *reinterpret_cast<Run<S, kCount>*>(to) = run;
  }
}

// The next kAhead rows of one thread, copied asynchronously to its own slots in shared memory while it works
// on the rows before; these copies need no registers. Single elements of half precision have no such copy:
// their row is loaded when it is requested.
//
// A slot is read and then reused for the next copy by the same thread, without a barrier in between: program
// order is enough, as in a cuda::pipeline of one thread, since no other thread accesses it.
template <class S, int kWidth, int kAhead, int kThreads>
class Ahead {
 public:
  static constexpr int kBytes = kWidth * static_cast<int>(sizeof(S));
  static constexpr bool kAsync = kBytes == 4 || kBytes == 8 || kBytes == 16;
  struct alignas(16) Places {
    Run<S, kWidth> at[kAhead][kThreads];
  };

  __device__ __forceinline__ explicit Ahead(Places& places) : own_(&places.at[0][threadIdx.x]) {}

  // Starts the copy of a row, if there is one; `slot` is that of the row kAhead before it.
  __device__ __forceinline__ void ask(int slot, const S* from, bool wanted) {
    if constexpr (kAsync) {
      if (wanted) copy_async<kBytes>(own_ + slot * kThreads, from);
      copy_async_commit();
    } else if (wanted) {
      own_[slot * kThreads] = load<S, kWidth>(from);
    }
  }
  // The row of `slot`, the oldest of the kAhead that were last requested.
  __device__ __forceinline__ Run<S, kWidth> take(int slot) {
    if constexpr (kAsync) copy_async_wait<kAhead - 1>();
    return load<S, kWidth>(own_[slot * kThreads].at);
  }

 private:
  Run<S, kWidth>* own_;
};

}  // namespace solo_attn
