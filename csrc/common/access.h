// Several elements by one instruction, 16 bytes where they are aligned.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.h"
#include "ptx.h"

namespace solo_attn {

template <class S>
constexpr int kPer16Bytes = 16 / static_cast<int>(sizeof(S));

inline bool aligned16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// kCount elements that were read by one instruction, or are to be written by one.
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

// The same of what is read once: it is the first that a cache gives up.
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

// The next kAhead rows of one thread, on their way to places of its own in shared memory while it works on
// those before, by copies that need no registers. Of half precision one by one there is no such copy: a row
// is then there when it was asked for.
//
// A place is read, and then given to the next copy, by the same thread with no barrier between: the order of
// the program holds for it, as in a cuda::pipeline of one thread, and no other thread touches it.
template <class S, int kWidth, int kAhead, int kThreads>
class Ahead {
 public:
  static constexpr int kBytes = kWidth * static_cast<int>(sizeof(S));
  static constexpr bool kAsync = kBytes == 4 || kBytes == 8 || kBytes == 16;
  struct alignas(16) Places {
    Run<S, kWidth> at[kAhead][kThreads];
  };

  __device__ __forceinline__ explicit Ahead(Places& places) : own_(&places.at[0][threadIdx.x]) {}

  // Asks for a row, where there is one; `slot` is that of the row kAhead before.
  __device__ __forceinline__ void ask(int slot, const S* from, bool wanted) {
    if constexpr (kAsync) {
      if (wanted) copy_async<kBytes>(own_ + slot * kThreads, from);
      copy_async_commit();
    } else if (wanted) {
      own_[slot * kThreads] = load<S, kWidth>(from);
    }
  }
  // The row of `slot`, the first of the kAhead that were asked for last.
  __device__ __forceinline__ Run<S, kWidth> take(int slot) {
    if constexpr (kAsync) copy_async_wait<kAhead - 1>();
    return load<S, kWidth>(own_[slot * kThreads].at);
  }

 private:
  Run<S, kWidth>* own_;
};

}  // namespace solo_attn
