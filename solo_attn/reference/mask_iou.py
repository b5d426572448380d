"""Intersection over union of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.bits import unpack

_CHUNK = 1 << 15  # pixels that are held as floats at a time; their counts are exact in float32


def mask_iou(masks: Tensor, others: Tensor | None) -> Tensor:
    """IoU of every pair, float32 [n, m]; ``others`` None stands for ``masks``.

    Both are bool or uint8 [n, P], or int64 words [n, W] whose spare bits are zero.
    """
    return exact_iou(masks, masks if others is None else others).float()


def exact_iou(masks: Tensor, others: Tensor) -> Tensor:
    """The same in float64, from counts that are exact: [n, m]."""
    pixels = min(_pixels(masks), _pixels(others))
    both = torch.zeros(len(masks), len(others), dtype=torch.int64, device=masks.device)
    areas = [torch.zeros(len(x), dtype=torch.int64, device=x.device) for x in (masks, others)]
    for start in range(0, pixels, _CHUNK):
        a, b = (_floats(x, start, min(start + _CHUNK, pixels)) for x in (masks, others))
        both += (a @ b.T).long()
        for area, part in zip(areas, (a, b), strict=True):
            area += part.sum(1).long()
    # Two empty masks have a union of 0: their IoU is 0, not 0 / 0.
    return both.double() / (areas[0][:, None] + areas[1][None, :] - both).clamp(min=1)


def _pixels(masks: Tensor) -> int:
    return masks.shape[1] * (64 if masks.dtype == torch.int64 else 1)


def _floats(masks: Tensor, start: int, stop: int) -> Tensor:
    """Pixels [start, stop) as 0 or 1; ``start`` is a multiple of 64."""
    if masks.dtype == torch.int64:
        return unpack(masks[:, start // 64 : -(-stop // 64)], stop - start).float()
    return masks[:, start:stop].ne(0).float()
