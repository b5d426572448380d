"""Dice loss of chosen cells (docs/method.md, "Losses" step 2), from coarse logits and attention rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import level_rows, resize_adjoint, widen
from ._factors import product, product_bwd
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


def dice_loss_levels(
    coarse_logits: Sequence[Tensor], attention: Sequence[Tensor], targets: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """The same of several levels, one after the other."""
    given = zip(coarse_logits, level_rows(coarse_logits, attention), targets, strict=True)
    losses, sums = zip(*(dice_loss(coarse, rows, truth, eps) for coarse, rows, truth in given), strict=True)
    return torch.cat(losses), torch.cat(sums)


def dice_loss_levels_bwd(
    grad: Tensor,
    coarse_logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    targets: Sequence[Tensor],
    sums: Tensor,
    coarse_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[list[Tensor], list[Tensor]]:
    """Each level's `dice_loss_bwd`."""
    counts = [len(coarse) for coarse in coarse_logits]
    rows = level_rows(coarse_logits, attention)
    given = zip(grad.split(counts), coarse_logits, rows, targets, sums.split(counts), strict=True)
    found = [
        dice_loss_bwd(*level, coarse_wanted, attention_wanted and level[2] is not None) for level in given
    ]
    return [coarse for coarse, _ in found], [rows for _, rows in found]


def dice_loss_factors(
    kernels: Tensor,
    features: Tensor,
    images: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The same of ``kernels[k] . features[images[k]]``, at the size of the features."""
    return dice_loss(product("dice_loss", kernels, features, images), attention, targets, eps)


def dice_loss_factors_bwd(
    grad: Tensor,
    kernels: Tensor,
    features: Tensor,
    images: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    sums: Tensor,
    kernels_wanted: bool = True,
    features_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Through the product made once more; a gradient that is not wanted has no elements."""
    logits = product("dice_loss", kernels, features, images)
    product_wanted = kernels_wanted or features_wanted
    coarse, rows = dice_loss_bwd(grad, logits, attention, targets, sums, product_wanted, attention_wanted)
    to_kernels, to_features = (
        kernels.new_empty(0, kernels.shape[1]),
        features.new_empty(0, *features.shape[1:]),
    )
    if product_wanted:
        both = product_bwd("dice_loss", coarse, kernels, features, images)
        to_kernels = both[0].to(kernels.dtype) if kernels_wanted else to_kernels
        to_features = both[1].to(kernels.dtype) if features_wanted else to_features
    return to_kernels, to_features, rows.to(kernels.dtype)


def _probability_and_truth(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    wide_attention = None if attention is None else widen(attention)
    logits = upsample_add(widen(coarse_logits), wide_attention, targets.shape[1:])
    return logits.sigmoid(), targets.ne(0).to(logits.dtype)
