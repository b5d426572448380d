"""Kept masks at image size (docs/method.md, "Inference" step 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ._common import resize
from .mask_bits import probability_maps

_BUDGET = 1 << 25  # probabilities at image size that are held at a time


def paste_masks(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> Tensor:
    """Stride 4 -> padded input (4 x out_size) -> crop to image_size -> original_size -> > threshold."""
    masks = torch.empty(len(coarse_logits), *original_size, dtype=torch.bool, device=coarse_logits.device)
    input_size = (4 * out_size[0], 4 * out_size[1])
    largest = max(input_size[0] * input_size[1], original_size[0] * original_size[1])
    step = max(1, _BUDGET // largest)
    for start in range(0, len(coarse_logits), step):
        part = slice(start, start + step)
        rows = None if attention is None else attention[part]
        maps = resize(probability_maps(coarse_logits[part], rows, size, out_size), input_size)
        masks[part] = resize(maps[:, : image_size[0], : image_size[1]], original_size) > threshold
    return masks


def paste_masks_rle(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """COCO's compressed counts, end to end: uint8 [total], and where each mask's begin and end: [K+1]."""
    import pycocotools.mask  # not needed by those who take masks as bool

    counts: list[bytes] = []
    for k in range(len(coarse_logits)):
        rows = None if attention is None else attention[k : k + 1]
        mask = paste_masks(
            coarse_logits[k : k + 1], rows, size, out_size, image_size, original_size, threshold
        )
        encoded = pycocotools.mask.encode(np.asfortranarray(mask[0].cpu().numpy()))
        counts.append(cast(bytes, encoded["counts"]))
    offsets = torch.tensor([0, *(len(c) for c in counts)]).cumsum(0)
    return torch.from_numpy(np.frombuffer(b"".join(counts), dtype=np.uint8).copy()), offsets
