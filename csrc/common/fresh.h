// New memory for results on a CPU.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace solo_attn {

// Asks for huge pages for the whole ones in this range. The system maps memory page by page when it is first
// written; with pages of 4 KiB that takes several times as long as the writes. Where the system has no huge
// pages, nothing changes.
inline void ask_for_huge_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20, kWorthwhile = 2 * kPage;
  if (bytes < kWorthwhile) return;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kPage * kPage;
  if (end > begin) (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
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

}  // namespace solo_attn
