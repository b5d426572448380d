// New memory for results on a CPU.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace solo_attn {

// Asks for huge pages for the whole ones in this range, which is new memory. The system maps memory page by
// page when it is first written; with pages of 4 KiB that takes several times as long as the writes. Where
// the system has no huge pages, nothing changes.
//
// Where free memory is in small pieces, the system moves other pages first to make room for a huge one, and a
// virtual machine may have handed large pieces of free memory back to its host. Then huge pages take as long
// as small ones or longer. So every eighth page is written here: if one takes that long, the rest is left to
// small pages, and so are other results, until the time lost to that page is 2 % of what has passed.
inline void ask_for_huge_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  using Clock = std::chrono::steady_clock;
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20, kLeast = 2 * kPage, kEvery = 8 * kPage;
  constexpr auto kSlow = std::chrono::milliseconds(1);
  constexpr int kPause = 50;  // times what the slow page took
  static std::atomic<Clock::rep> resume{std::numeric_limits<Clock::rep>::min()};
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kPage * kPage;
  if (bytes < kLeast || end <= begin) return;
  if (Clock::now().time_since_epoch().count() < resume.load(std::memory_order_relaxed)) return;
  if (::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) != 0) return;
  auto before = Clock::now();
  for (auto page = begin; page < end; page += kEvery) {
    *reinterpret_cast<volatile char*>(page) = 0;
    const auto now = Clock::now();
    if (now - before > kSlow) {
      const auto rest = page + kPage;
      if (rest < end) (void)::madvise(reinterpret_cast<void*>(rest), end - rest, MADV_NOHUGEPAGE);
      resume.store((now + kPause * (now - before)).time_since_epoch().count(), std::memory_order_relaxed);
      return;
    }
    before = now;
  }
#else
  (void)data, (void)bytes;
#endif
}

// A new, uninitialised result with the dtype of `like` unless another one is given.
inline torch::stable::Tensor fresh(const torch::stable::Tensor& like,
                                   torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                   std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  torch::stable::Tensor out = torch::stable::new_empty(like, sizes, dtype);
  ask_for_huge_pages(out.mutable_data_ptr(), static_cast<std::size_t>(out.numel()) * out.element_size());
  return out;
}

// A new result of bools that are all false, in pages of its own: the system hands them out as zeros, so that
// what stays false is never written. Only of a size for which allocators map new pages as well; none of a
// smaller one, or where the system has no room.
inline std::optional<torch::stable::Tensor> blank_masks(const torch::stable::Tensor& like,
                                                        const std::vector<int64_t>& sizes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::size_t kPage = std::size_t{2} << 20, kLeast = std::size_t{32} << 20,
                        kMost = std::size_t{1} << 46;
  double about = 1;
  for (const int64_t size : sizes) about *= static_cast<double>(size);
  if (about < kLeast || about > kMost) return std::nullopt;
  std::vector<int64_t> strides(sizes.size());
  int64_t bytes = 1;
  for (std::size_t d = sizes.size(); d-- > 0; bytes *= sizes[d]) strides[d] = bytes;
  const std::size_t whole = (static_cast<std::size_t>(bytes) + kPage - 1) / kPage * kPage,
                    room = whole + kPage;
  void* pages = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return std::nullopt;
  const auto begin = (reinterpret_cast<std::uintptr_t>(pages) + kPage - 1) / kPage * kPage;
  ask_for_huge_pages(reinterpret_cast<void*>(begin), whole);
  return torch::stable::from_blob(reinterpret_cast<void*>(begin), sizes, strides, like.device(),
                                  torch::headeronly::ScalarType::Bool,
                                  [pages, room](void*) { (void)::munmap(pages, room); });
#else
  return std::nullopt;
#endif
}

}  // namespace solo_attn
