"""Matrix NMS (spec 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulator
from .mask_bits import unpack

_CHUNK = 1 << 15  # pixels that are held as floats at a time; their counts are exact in float32


def matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, kernel: str, sigma: float
) -> tuple[Tensor, Tensor]:
    """Decayed scores [n] and the decay [n] itself, in input order.

    ``masks`` are bool or uint8 [n, P], or int64 words [n, W] whose spare bits are zero.
    """
    order = descending(scores)
    decay = torch.empty_like(scores, dtype=accumulator(scores.dtype))
    for label in labels.unique():  # only pairs of one label matter
        group = order[labels[order] == label]
        decay[group] = decay_of(_iou(masks[group]).to(decay.dtype), kernel, sigma)
    return (scores * decay).to(scores.dtype), decay


def descending(scores: Tensor) -> Tensor:
    """Higher score first, then lower index; NaN last, so that it suppresses nothing."""
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf).argsort(descending=True, stable=True)


def _iou(masks: Tensor) -> Tensor:
    count, width = masks.shape
    intersection = torch.zeros(count, count, dtype=torch.int64, device=masks.device)
    step = _CHUNK // 64 if masks.dtype == torch.int64 else _CHUNK
    for start in range(0, width, step):
        part = masks[:, start : start + step]
        bits = unpack(part, part.shape[1] * 64) if masks.dtype == torch.int64 else part.ne(0)
        bits = bits.float()
        intersection += (bits @ bits.T).long()
    area = intersection.diagonal()
    # Two empty masks have a union of 0: their IoU is 0, not 0 / 0.
    union = (area[:, None] + area[None, :] - intersection).clamp(min=1)
    return intersection.double() / union


def decay_of(iou: Tensor, kernel: str, sigma: float) -> Tensor:
    """The decay [n] of masks of one label, best first, from their IoU [n, n]."""
    count = len(iou)
    later = torch.ones(count, count, dtype=torch.bool, device=iou.device).triu(1)  # i < j
    overlap = iou * later  # d_ij
    worst = overlap.amax(0)[:, None]  # c_i
    if kernel == "gaussian":
        decay = torch.exp(sigma * (worst.square() - overlap.square()))
    else:
        # A mask with a twin before it (c_i = 1) binds nobody: its twin does.
        decay = torch.where(worst < 1, (1 - overlap) / (1 - worst), 1.0)
    return torch.where(later, decay, 1.0).amin(0).clamp(max=1)
