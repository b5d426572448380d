// Memory of large results on a CPU.
//
// The C library's allocators hand large pieces back to the system at once, and to map and clear their pages
// again takes several times as long as to write them: 361 MB are written in 25 ms, in new pages in 100 and
// more. So results of 32 MiB and more are pieces of their own here, which are kept when the results are
// freed, 1 GiB of them at most in a process, and the next results of about that size are written into them.
// The system may take kept pages at any time (MADV_FREE), and does so before it is out of memory; a child
// process does not get them. They still count where a process may not have more than so many bytes
// (RLIMIT_DATA).
//
// Like all tensors of memory that is not PyTorch's, large results cannot be made larger in place (resize_).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace solo_attn {

// A new tensor of the dtype and device of `like`, which is on a CPU. Nothing is known of its values.
torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes);

struct NewMasks {
  torch::stable::Tensor masks;  // bool
  bool blank;                   // all are false already: what stays false need not be written
};

// Masks are blank if they are large and in new memory: the system hands it out as zeros.
NewMasks new_masks(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes);

}  // namespace solo_attn
