// Threads: PyTorch's own, so that torch.set_num_threads holds here too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace solo_attn {

// Calls f(begin, end) on parts of [0, count). `cost` is about how many nanoseconds one item takes: what is
// over sooner than a thread wakes up stays on the calling one.
template <class F>
void parallel_for(int64_t count, int64_t cost, const F& f) {
  constexpr int64_t kWorthwhile = 20'000;
  if (count > 0) {
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(1, cost)), f);
  }
}

}  // namespace solo_attn
