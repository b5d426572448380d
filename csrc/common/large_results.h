// Memory of large results on a CPU.
//
// The C library's allocators hand large pieces back to the system at once, and to map and clear their pages
// again takes several times as long as to write them. So results of 4 MiB and more are pieces of their own
// here. Those of up to 1 GiB are kept when the results are freed, 1 GiB of them at most in a process, and the
// next results of about that size are written into them. From Linux 4.14 on a child process does not get what
// is kept.
//
// What was freed last stays as it is: at most 512 MiB, and at most 1/32 of the memory of the machine or of
// the container. The system may take the pages of what was freed before (MADV_FREE), and does so before it is
// out of memory; to mark them, and then to write to them again, takes as long as to write them once more. All
// that is kept counts where a process or all may only have so much (RLIMIT_DATA, strict overcommit): then new
// results take it, but other allocations fail until it is released.
//
// Large results cannot be made larger in place (resize_), like all tensors of memory that is not PyTorch's,
// and its profiler does not count them.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace solo_attn {

// A new tensor on the device of `like`, which is a CPU. `blank`, if given, becomes true if all its bytes are
// 0; otherwise nothing is known of them.
torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
                                 torch::headeronly::ScalarType dtype, bool* blank = nullptr);

}  // namespace solo_attn
