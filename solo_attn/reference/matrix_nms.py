"""Matrix NMS (docs/method.md, "Matrix NMS")."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import accumulator
from .._utils.decay import decay_of, descending
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
