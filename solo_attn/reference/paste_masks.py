"""Kept masks at image size (docs/method.md, "Inference" step 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import fail
from ._common import level_rows, resize
from .mask_bits import probability_maps

Level = tuple[Any, Tensor | None, Any]  # coarse logits or their factors, attention rows, size

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
    sizes = (size, out_size, image_size, original_size)
    return _joined(_encoded(coarse_logits, attention, *sizes, threshold))


def _encoded(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> list[bytes]:
    import pycocotools.mask  # not needed by those who take masks as bool

    counts: list[bytes] = []
    for k in range(len(coarse_logits)):
        rows = None if attention is None else attention[k : k + 1]
        mask = paste_masks(
            coarse_logits[k : k + 1], rows, size, out_size, image_size, original_size, threshold
        )
        encoded = pycocotools.mask.encode(np.asfortranarray(mask[0].cpu().numpy()))
        counts.append(cast(bytes, encoded["counts"]))
    return counts


def _joined(counts: Sequence[bytes]) -> tuple[Tensor, Tensor]:
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
    for mine, level in by_level(_levels(coarse_logits, attention, sizes), index):
        masks[mine] = paste_masks(*level, out_size, image_size, original_size, threshold)
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
    counts = [b""] * len(index)
    for mine, level in by_level(_levels(coarse_logits, attention, sizes), index):
        found = _encoded(*level, out_size, image_size, original_size, threshold)
        for n, encoded in zip(mine.tolist(), found, strict=True):
            counts[n] = encoded
    return _joined(counts)


def by_level(levels: Sequence[Level], index: Tensor) -> list[tuple[Tensor, Level]]:
    """Of each level that has some of the masks at ``index``: their rows in the result, and their cells.

    Raises:
        ValueError: a number that no cell has.
    """
    found, start = [], 0
    for coarse_logits, attention, size in levels:
        local = index - start
        mine = ((local >= 0) & (local < len(coarse_logits))).nonzero().squeeze(1)
        if len(mine):
            chosen = local[mine]
            rows = None if attention is None else attention[chosen]
            found.append((mine, (coarse_logits[chosen], rows, size)))
        start += len(coarse_logits)
    if sum(len(mine) for mine, _ in found) < len(index):
        low, high = index.amin().item(), index.amax().item()
        fail("paste_masks", "index", f"in 0..{start - 1}", f"{low}..{high}")
    return found


def _levels(
    coarse_logits: Sequence[Tensor], attention: Sequence[Tensor], sizes: Sequence[int]
) -> list[Level]:
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    return list(zip(coarse_logits, level_rows(coarse_logits, attention), pairs, strict=True))
