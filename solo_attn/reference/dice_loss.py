"""Dice loss of chosen cells (docs/method.md, "Losses" step 2), from coarse logits and attention rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import widen
from .upsample_add import upsample_add, upsample_add_bwd


def dice_loss(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """1 - 2 Sum(p t) / ((Sum p^2 + eps) + (Sum t^2 + eps)), p = sigmoid(logit): losses [K].

    Also returns what the gradient needs of each row, [K, 2]: Sum(p t) and the denominator.
    """
    probability, truth = _probability_and_truth(coarse_logits, attention, targets)
    overlap = (probability * truth).flatten(1).sum(1)
    total = (probability.square().flatten(1).sum(1) + eps) + (truth.square().flatten(1).sum(1) + eps)
    return 1 - 2 * overlap / total, torch.stack([overlap, total], dim=1)


def dice_loss_bwd(
    grad: Tensor, coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """DL/dp = -2 t / total + 4 overlap p / total^2, through the sigmoid and both enlargements."""
    probability, truth = _probability_and_truth(coarse_logits, attention, targets)
    overlap, total = sums.unbind(1)
    slope = (4 * overlap / total.square())[:, None, None] * probability - (2 / total)[:, None, None] * truth
    logits = grad[:, None, None] * slope * probability * (1 - probability)
    size = (0, 0) if attention is None else attention.shape[1:]
    coarse, rows = upsample_add_bwd(logits, coarse_logits.shape[1:], size)
    return coarse.to(coarse_logits.dtype), rows.to(coarse_logits.dtype)


def _probability_and_truth(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    wide_attention = None if attention is None else widen(attention)
    logits = upsample_add(widen(coarse_logits), wide_attention, targets.shape[1:])
    return logits.sigmoid(), targets.ne(0).to(logits.dtype)
