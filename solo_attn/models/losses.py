"""L = L_category + lambda L_mask: focal + dice (docs/method.md, "Losses")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ..ops import MaskFactors, dice_loss_levels
from .heads import CellMasks, Head, HeadResult
from .targets import LevelTargets

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
DICE_EPS = 1e-3


def category_loss(category_logits: Sequence[Tensor], targets: Sequence[LevelTargets]) -> Tensor:
    """Sigmoid focal loss summed over all cells and categories / (number of positive cells + 1).

    Half precision is summed in float32.
    """
    positives = sum(level.positives for level in targets)
    dtype = torch.promote_types(category_logits[0].dtype, torch.float32)
    total = category_logits[0].new_zeros((), dtype=dtype)
    for logits, level in zip(category_logits, targets, strict=True):
        # BACKGROUND is -1: its one-hot row is the dropped first column.
        truth = F.one_hot(level.labels + 1, logits.shape[1] + 1)[..., 1:].permute(0, 3, 1, 2)
        total = total + sigmoid_focal_loss(
            logits.to(dtype), truth.to(dtype), alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum"
        )
    return total / (positives + 1)


def mask_loss(
    head: Head,
    result: HeadResult,
    targets: Sequence[LevelTargets],
    weight: float,
) -> Tensor:
    """Mean dice loss of the positive cells x ``weight``; 0, still part of the graph, if there are none.

    Only the masks of positive cells are computed, and only levels that have some run their mask tower.
    """
    # Levels and images without a positive cell leave parameters unused: a gradient of 0 rather than none,
    # so that processes that train together exchange the same gradients.
    parameters = head.mask_parameters()
    start = result.features[0].new_zeros((), dtype=parameters[0].dtype)
    total = sum((p.sum() * 0 for p in parameters), start=start)
    positives = sum(level.positives for level in targets)
    images = {k: level.cells[:, 0].unique() for k, level in enumerate(targets) if len(level.cells)}
    result = head.prepare(result, images)
    parts = [(head.cell_masks(result, k, targets[k].cells), targets[k].masks) for k in images]
    if parts:
        levels = [(cells.coarse_logits, cells.attention, truth) for cells, truth in _joined(parts)]
        total = total + dice_loss_levels(levels, DICE_EPS).sum()
    return weight * total / max(positives, 1)


def _joined(parts: list[tuple[CellMasks, Tensor]]) -> list[tuple[CellMasks, Tensor]]:
    """Levels whose masks are products with the same features as one, so that these are read once."""
    levels = [cells.coarse_logits for cells, _ in parts if cells.attention is None]
    factors = [level for level in levels if isinstance(level, MaskFactors)]
    if len(factors) < max(len(parts), 1) or len({id(level.features) for level in factors}) > 1:
        return parts
    joined = MaskFactors(
        torch.cat([level.kernels for level in factors]),
        factors[0].features,
        torch.cat([level.images for level in factors]),
    )
    return [(CellMasks(joined, None, parts[0][0].size), torch.cat([truth for _, truth in parts]))]
