// Marks functions that CUDA kernels use as well.
#pragma once

#if defined(__CUDACC__)
#define SOLO_ATTN_HOST_DEVICE __host__ __device__
#else
#define SOLO_ATTN_HOST_DEVICE
#endif
