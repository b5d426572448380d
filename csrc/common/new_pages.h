// Pages of large new results on a CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace solo_attn {

constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
// Microseconds: about what small pages take in the place of a huge one, see NewPages. What takes less than
// kThere was there already.
constexpr int64_t kSmall = 500, kThere = 10;

// Huge pages for a large new result. The system maps memory page by page when it is first written; with pages
// of 4 KiB that takes several times as long as the writes. Where the system has no huge pages, nothing
// changes.
//
// Where free memory is in small pieces, the system moves other pages first to make room for a huge one, and a
// virtual machine may have handed large pieces of free memory back to its host, but not the small ones. Then
// huge pages take longer than small ones. So threads say what they are about to write: a page is touched by
// the first of them and timed, and where pages take longer than small ones would, those that nobody has
// touched are left to small pages.
class NewPages {
 public:
  NewPages(void* data, std::size_t bytes) : saved_(static_cast<int64_t>(bytes / kHugePage) * kSmall / 30) {
#if defined(MADV_HUGEPAGE)
    const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
    const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kHugePage * kHugePage;
    if (end < begin + 2 * kHugePage) return;
    if (::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) != 0) return;
    begin_ = begin;
    end_ = end;
    touched_ = std::make_unique<std::atomic<bool>[]>((end - begin) / kHugePage);
    huge_.store(true, std::memory_order_relaxed);
#else
    (void)data, (void)bytes;
#endif
  }

  // Before any of [from, from + bytes) is written.
  void reach(void* from, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    using Clock = std::chrono::steady_clock;
    using std::chrono::microseconds;
    if (!huge_.load(std::memory_order_relaxed)) return;
    const auto first = std::max(reinterpret_cast<std::uintptr_t>(from), begin_);
    const auto last = std::min(reinterpret_cast<std::uintptr_t>(from) + bytes, end_);
    for (auto place = first; place < last; place = (place / kHugePage + 1) * kHugePage) {
      std::atomic<bool>& touched = touched_[(place - begin_) / kHugePage];
      if (touched.load(std::memory_order_relaxed) || touched.exchange(true)) continue;
      const auto before = Clock::now();
      touch(place);
      const int64_t taken = std::chrono::duration_cast<microseconds>(Clock::now() - before).count();
      if (taken < kThere) continue;
      if (saved_.fetch_add(kSmall - taken) + kSmall - taken < 0) {
        if (huge_.exchange(false)) {
          (void)::madvise(reinterpret_cast<void*>(begin_), end_ - begin_, MADV_NOHUGEPAGE);
        }
        return;
      }
    }
#else
    (void)from, (void)bytes;
#endif
  }

 private:
  // A write that changes nothing, since another thread may write its part of the page.
  static void touch(std::uintptr_t place) {
    const volatile char nothing = 0;
    __atomic_fetch_or(reinterpret_cast<char*>(place), nothing, __ATOMIC_RELAXED);
  }

  std::uintptr_t begin_ = 0, end_ = 0;
  std::unique_ptr<std::atomic<bool>[]> touched_;  // of each page
  std::atomic<bool> huge_{false};
  std::atomic<int64_t> saved_;  // microseconds; at first 3 % of all that small pages would take may be lost
};

inline std::size_t bytes_of(const torch::stable::Tensor& x) {
  return static_cast<std::size_t>(x.numel()) * x.element_size();
}

}  // namespace solo_attn
