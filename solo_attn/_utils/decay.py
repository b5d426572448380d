"""Order and decay of Matrix NMS (docs/method.md), which the reference and mmdetection's drop-in share."""

from __future__ import annotations

import torch
from torch import Tensor


def descending(scores: Tensor) -> Tensor:
    """Indices by higher score, then lower index: int64 [n]. NaN comes last, so that it suppresses nothing."""
    return scores.neg().argsort(stable=True)  # for argsort NaN is the largest


def decay_of(iou: Tensor, kernel: str, sigma: float) -> Tensor:
    """The decay of the scores of masks of one label.

    Args:
        iou: IoU of every pair, [n, n], masks in the order of `descending`.
        kernel: "gaussian" or "linear".
        sigma: of the gaussian.

    Returns:
        [n], in 0..1.
    """
    count = len(iou)
    later = torch.ones(count, count, dtype=torch.bool, device=iou.device).triu(1)  # i < j
    overlap = iou * later  # d_ij
    worst = overlap.amax(0)[:, None]  # c_i
    if kernel == "gaussian":
        decay = torch.exp(sigma * (worst.square() - overlap.square()))
    else:
        # A mask with an identical one before it (c_i = 1) does not decay others: that one does.
        decay = torch.where(worst < 1, (1 - overlap) / (1 - worst), 1.0)
    return torch.where(later, decay, 1.0).amin(0).clamp(max=1)
