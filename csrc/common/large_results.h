// Memory of large results on a CPU.
//
// The C library's allocators hand large pieces back to the system at once, and to map and clear their pages
// again takes several times as long as to write them: 361 MB are written in 25 ms, in new pages in 100 and
// more. So results of 32 MiB to 1 GiB are pieces of their own here, which are kept when the results are
// freed, 1 GiB of them at most in a process, and the next results of about that size are written into them.
// The system may take kept pages at any time (MADV_FREE), and does so before it is out of memory; a child
// process does not get them. They still count where a process or all may only have so much (RLIMIT_DATA,
// strict overcommit): then new results take what is kept, but other allocations fail until it is released.
//
// Large results cannot be made larger in place (resize_), like all tensors of memory that is not PyTorch's,
// and its profiler does not count them.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace solo_attn {

// A new tensor on the device of `like`, which is a CPU. Nothing is known of its values.
torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
                                 torch::headeronly::ScalarType dtype);

// A new tensor of bools that are all false, in new memory, which is not kept: the system hands it out as
// zeros, so that what stays false need not be written. None of less than 32 MiB, or where there is no room.
std::optional<torch::stable::Tensor> blank_masks(const torch::stable::Tensor& like,
                                                 const std::vector<int64_t>& sizes);

}  // namespace solo_attn
