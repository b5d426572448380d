// Memory of large results on a CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace solo_attn {

// A new tensor of the dtype and device of `like`, which is on a CPU. Nothing is known of its values.
//
// The C library's allocators hand large pieces back to the system at once, and to map and clear their pages
// again takes several times as long as to write them: 361 MB are written in 25 ms, in new pages in 100 and
// more. So pieces of 32 MiB and more that were results of this function are kept when these are freed, 1 GiB
// of them at most, and the next results of about that size are written into them. Whoever else needs the
// memory has it: the system may take kept pages at any time (MADV_FREE), and does so before it is out of
// memory.
torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes);

// A new tensor of bools that are all false, in pages of its own: the system hands them out as zeros, so that
// what stays false need not be written. Only of 32 MiB and more, for which allocators map new pages as well;
// none of a smaller one, or where the system has no room.
std::optional<torch::stable::Tensor> blank_masks(const torch::stable::Tensor& like,
                                                 const std::vector<int64_t>& sizes);

}  // namespace solo_attn
