"""What the Triton kernels promise beyond the tests that all backends share."""

import numpy as np
import torch

OP = "mask_iou"
BACKEND = "triton"


def test_counts_beyond_float32(runner):
    """Areas from 2^24 on, given for masks that are none of it: neither they nor their sums are float32."""
    from solo_attn.kernels import mask_iou as kernels

    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 1 << 31, (16, 3), generator=generator, dtype=torch.int32).to(runner.device)
    areas = torch.randint(1 << 24, 1 << 26, (16,), generator=generator, dtype=torch.int32).to(runner.device)
    out = torch.empty(16, 16, device=runner.device)
    sizes = (16, 16, 3, 3, 2)
    kernels.launch(kernels._mask_iou_fwd_kernel, (1,), words, words, areas, areas, out, *sizes, SAME=False)
    bits = (words.cpu().numpy()[:, :, None] >> np.arange(32) & 1).reshape(16, 96).astype(np.int64)
    both = bits @ bits.T
    area = areas.cpu().numpy().astype(np.int64)
    exact = (both / (area[:, None] + area[None, :] - both)).astype(np.float32)
    assert np.array_equal(out.cpu().numpy(), exact)
