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

// The next kAhead rows of one thread, on their way while it works on those before. 16 bytes wide they go to
// places of its own in shared memory, by copies that need no registers; narrower ones go to registers.
template <class S, int kWidth, int kAhead, int kThreads>
class Ahead {
 public:
  static constexpr bool kAsync = kWidth * sizeof(S) == 16;
  // Rows in the body of a loop over them: registers have no index.
  static constexpr int kUnroll = kAsync ? 1 : kAhead;
  struct alignas(16) Places {
    Run<S, kWidth> at[kAsync ? kAhead : 1][kAsync ? kThreads : 1];
  };

  __device__ __forceinline__ explicit Ahead(Places& places) : own_(&places.at[0][kAsync ? threadIdx.x : 0]) {}

  // Asks for row k, where there is one; its place is that of row k - kAhead.
  __device__ __forceinline__ void ask(int k, const S* from, bool wanted) {
    if constexpr (kAsync) {
      if (wanted) copy_async(own_ + k % kAhead * kThreads, from);
      copy_async_commit();
    } else if (wanted) {
      registers_[k % kAhead] = load_once<S, kWidth>(from);
    }
  }
  // Row k, which was asked for, as were all up to row k + kAhead - 1 and no others.
  __device__ __forceinline__ Run<S, kWidth> take(int k) {
    if constexpr (kAsync) {
      copy_async_wait<kAhead - 1>();
      return load<S, kWidth>(own_[k % kAhead * kThreads].at);
    } else {
      return registers_[k % kAhead];
    }
  }

 private:
  Run<S, kWidth>* own_;
  Run<S, kWidth> registers_[kAsync ? 1 : kAhead];
};

}  // namespace solo_attn
