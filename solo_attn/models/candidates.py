"""Which (cell, class) pairs of a level go on, in both forms: all above the threshold, or the K best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import BitMasks
from .heads import CellMasks


@dataclass
class Candidates:
    """(cell, class) pairs of a batch; masks are shared by the classes of a cell.

    Attributes:
        image: int64 [n].
        label: int64 [n].
        score: float32 [n].
        mask: int64 [n], index of the cell's mask among all levels' masks.
    """

    image: Tensor
    label: Tensor
    score: Tensor
    mask: Tensor

    def select(self, index: Tensor) -> Candidates:
        """The candidates at ``index``, in its order."""
        return Candidates(self.image[index], self.label[index], self.score[index], self.mask[index])

    def best(self, limit: int) -> Candidates:
        """At most ``limit`` of each image: by image, then higher score, then lower index."""
        order = self.score.argsort(descending=True, stable=True)
        order = order[self.image[order].argsort(stable=True)]
        ranked = self.select(order)
        first = torch.searchsorted(ranked.image, ranked.image)  # where the candidate's image begins
        rank = torch.arange(len(order), device=order.device) - first
        return ranked.select((rank < limit).nonzero().squeeze(1))


class Drawn(NamedTuple):
    """The candidates of a batch and what their masks are made of; levels without candidates are left out.

    Attributes:
        candidates: ``candidates.mask`` counts through the lists that follow.
        cells: the level, and its cells int64 [K, 2] of (image, cell = row * S + column).
        masks: of these cells.
        bits: the same at ``out_size``, of all levels; None where no level has any.
        out_size: (height, width) at which masks are compared.
    """

    candidates: Candidates
    cells: list[tuple[int, Tensor]]
    masks: list[CellMasks]
    bits: BitMasks | None
    out_size: tuple[int, int]


def points_nms(scores: Tensor) -> Tensor:
    """Keep a score where it is the largest of itself, its left, upper and upper left neighbour; ties stay.

    The window is asymmetric: a 2x2 max-pool with padding 1 whose last row and column are cropped.

    Args:
        scores: [B, C, S, S], at least 0.
    """
    pooled = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (pooled == scores)


def find_candidates(scores: Tensor, threshold: float) -> tuple[Candidates, Tensor]:
    """Every (cell, class) of a level with a score above ``threshold``, and the cells to draw, [K, 2].

    Args:
        scores: [B, C, S, S], after `points_nms`.
        threshold: exclusive.
    """
    side = scores.shape[-1]
    image, row, column, label = (scores.permute(0, 2, 3, 1) > threshold).nonzero().unbind(1)
    cell = image * side * side + row * side + column
    unique, mask = cell.unique(return_inverse=True)
    cells = torch.stack([unique // (side * side), unique % (side * side)], dim=1)
    return Candidates(image, label, scores[image, label, row, column], mask), cells


def best_pairs(scores: Tensor, threshold: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best (cell, class) pairs of a level in each image: a fixed number, whatever the scores.

    Args:
        scores: [B, C, S, S], after `points_nms`.
        threshold: exclusive.
        count: K; all S*S*C pairs where they are fewer.

    Returns:
        Scores [B, K], 0 where they are not above the threshold; pairs int64 [B, K], cell * C + class; how
        many pairs above the threshold were left out, int64 [B].
    """
    every = scores.permute(0, 2, 3, 1).flatten(1)
    above = every > threshold
    # A pair below the threshold comes last with its score of 0, and changes nothing.
    best, pair = torch.where(above, every, 0.0).topk(min(count, scores[0].numel()))
    return best, pair, above.sum(1) - (best > 0).sum(1)
