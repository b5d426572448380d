"""Matrix NMS (docs/method.md, "Matrix NMS")."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import accumulator
from .mask_iou import exact_iou


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
        decay[group] = decay_of(exact_iou(masks[group], masks[group]).to(decay.dtype), kernel, sigma)
    # A score that is decayed to nothing is 0, also where it was infinite.
    return torch.where((decay == 0) & scores.isinf(), 0.0, scores * decay).to(scores.dtype), decay


def descending(scores: Tensor) -> Tensor:
    """Higher score first, then lower index; NaN last, so that it suppresses nothing."""
    return scores.neg().argsort(stable=True)  # to which NaN is the largest


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
