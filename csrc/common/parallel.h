// Loops on PyTorch's own threads, so that torch.set_num_threads applies here too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "check.h"

namespace solo_attn {

// In nanoseconds: less work than this takes less time than waking a thread, and stays on the calling one.
constexpr int64_t kWorthwhile = 20'000;

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

// Calls f(begin, end) on parts of [0, count), one for each thread. `cost` is about how many nanoseconds one
// item takes. Nested calls run on the calling thread.
template <class F>
void parallel_for(int64_t count, int64_t cost, const F& f) {
  if (count > 0) {
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(1, cost)), f);
  }
}

// Items that threads take one by one. Each begins with a share of adjacent ones, the same in every op on the
// same cells, so that it finds in its own cache what it has read or written before; a thread that has none
// left takes the last one of another's share.
class Shares {
 public:
  Shares(int64_t count, int64_t threads) : shares_(threads) {
    for (int64_t t = 0; t < threads; ++t) {
      shares_[t].left.store(packed(begin(t, count, threads), begin(t + 1, count, threads)),
                            std::memory_order_relaxed);
    }
  }

  // An item that nobody has taken, or -1 if there is none.
  int64_t next(int64_t thread) {
    const auto threads = static_cast<int64_t>(shares_.size());
    int64_t item = take(shares_[thread], true);
    for (int64_t t = 1; item < 0 && t < threads; ++t) item = take(shares_[(thread + t) % threads], false);
    return item;
  }

 private:
  // The first item of a thread's share.
  static int64_t begin(int64_t thread, int64_t count, int64_t threads) { return count * thread / threads; }

  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};  // [begin, end), 32 bits each
  };

  static uint64_t packed(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }

  static int64_t take(Share& share, bool first) {
    uint64_t left = share.left.load(std::memory_order_relaxed);
    for (;;) {
      const auto begin = static_cast<int64_t>(left >> 32), end = static_cast<int64_t>(left & 0xffffffff);
      if (begin >= end) return -1;
      const uint64_t rest = first ? packed(begin + 1, end) : packed(begin, end - 1);
      if (share.left.compare_exchange_weak(left, rest, std::memory_order_relaxed)) {
        return first ? begin : end - 1;
      }
    }
  }

  std::vector<Share> shares_;
};

// For items of unequal cost, fewer than 2^32: each thread calls f(next) once, and next() gives the next item
// of `Shares`, or -1 if there is none.
template <class F>
void parallel_dynamic(int64_t count, int64_t cost, const F& f) {
  if (count <= 0) return;
  check(count < int64_t(1) << 32, "expected fewer than 2^32 parts of work, got ", count);
  const int64_t worthwhile = (count * cost + kWorthwhile - 1) / kWorthwhile;
  const int64_t threads = std::min({thread_count(), count, std::max<int64_t>(1, worthwhile)});
  Shares shares(count, threads);
  torch::stable::parallel_for(
      0, threads, 1, [&](int64_t thread, int64_t) { f([&shares, thread] { return shares.next(thread); }); });
}

}  // namespace solo_attn
