// Loops on PyTorch's own threads, so that torch.set_num_threads applies here too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

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

// For items of unequal cost: each thread calls f(next) once, and next() gives the next item that no thread
// has taken, or -1 if there is none.
template <class F>
void parallel_dynamic(int64_t count, int64_t cost, const F& f) {
  if (count <= 0) return;
  std::atomic<int64_t> taken{0};
  const auto next = [&] {
    const int64_t item = taken.fetch_add(1, std::memory_order_relaxed);
    return item < count ? item : int64_t(-1);
  };
  const int64_t worthwhile = (count * cost + kWorthwhile - 1) / kWorthwhile;
  const int64_t threads = std::min({thread_count(), count, std::max<int64_t>(1, worthwhile)});
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { f(next); });
}

}  // namespace solo_attn
