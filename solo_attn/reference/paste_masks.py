"""Kept masks at image size (docs/method.md, "Inference" step 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import fail
from ._common import level_rows, resize
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


def paste_masks_levels(
    coarse_logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    sizes: Sequence[int],
    index: Tensor,
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> Tensor:
    """Those at ``index`` among the masks of all levels; ``sizes`` has two numbers for each level."""
    masks = torch.empty(len(index), *original_size, dtype=torch.bool, device=index.device)
    for n, one in enumerate(_chosen(coarse_logits, attention, sizes, index)):
        masks[n] = paste_masks(*one, out_size, image_size, original_size, threshold)[0]
    return masks


def paste_masks_levels_rle(
    coarse_logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    sizes: Sequence[int],
    index: Tensor,
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """The same, encoded as by `paste_masks_rle`."""
    found = [
        paste_masks_rle(*one, out_size, image_size, original_size, threshold)[0]
        for one in _chosen(coarse_logits, attention, sizes, index)
    ]
    offsets = torch.tensor([0, *(len(counts) for counts in found)]).cumsum(0)
    return torch.cat([torch.empty(0, dtype=torch.uint8), *found]), offsets


def _chosen(
    coarse_logits: Sequence[Tensor], attention: Sequence[Tensor], sizes: Sequence[int], index: Tensor
) -> Iterator[tuple[Tensor, Tensor | None, Sequence[int]]]:
    """One mask at a time: its coarse logits, its attention row, its level's size."""
    rows = level_rows(coarse_logits, attention)
    masks = [(k, cell) for k, level in enumerate(coarse_logits) for cell in range(len(level))]
    for mask in index.tolist():
        if not 0 <= mask < len(masks):
            fail("paste_masks", "index", f"in 0..{len(masks) - 1}", str(mask))
        k, cell = masks[mask]
        row = rows[k]
        one = slice(cell, cell + 1)
        yield coarse_logits[k][one], None if row is None else row[one], sizes[2 * k : 2 * k + 2]
