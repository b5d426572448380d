"""Dice loss of chosen cells (docs/method.md, "Losses" step 2), from coarse logits and attention rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import resize_adjoint, widen
from .upsample_add import upsample_add


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
    grad: Tensor,
    coarse_logits: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    sums: Tensor,
    coarse_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[Tensor, Tensor]:
    """DL/dp = -2 t / total + 4 overlap p / total^2, through the sigmoid and both enlargements.

    A gradient that is not wanted is [K, 0, 0].
    """
    probability, truth = _probability_and_truth(coarse_logits, attention, targets)
    overlap, total = sums.unbind(1)
    slope = (4 * overlap / total.square())[:, None, None] * probability - (2 / total)[:, None, None] * truth
    logits = grad[:, None, None] * slope * probability * (1 - probability)
    wanted = [coarse_logits if coarse_wanted else None, attention if attention_wanted else None]
    grads = [
        logits.new_empty(len(grad), 0, 0) if x is None else resize_adjoint(logits, x.shape[1:])
        for x in wanted
    ]
    return grads[0].to(coarse_logits.dtype), grads[1].to(coarse_logits.dtype)


def _probability_and_truth(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    wide_attention = None if attention is None else widen(attention)
    logits = upsample_add(widen(coarse_logits), wide_attention, targets.shape[1:])
    return logits.sigmoid(), targets.ne(0).to(logits.dtype)
