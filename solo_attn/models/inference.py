"""From category scores to final masks, in the order of docs/method.md, "Inference"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.bits import occupied, span
from .._utils.limits import refuse_pixels
from ..ops import BitMasks, mask_bits, matrix_nms, paste_masks
from .heads import STRIDES, CellMasks, Head, HeadResult
from .settings import InferenceSettings


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
        bits: the same at ``out_size``.
        out_size: (height, width) at which masks are compared.
    """

    candidates: Candidates
    cells: list[tuple[int, Tensor]]
    masks: list[CellMasks]
    bits: list[BitMasks]
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


def predict(
    head: Head,
    result: HeadResult,
    image_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    options: InferenceSettings,
    *,
    rle: bool = False,
) -> list[dict[str, Any]]:
    """Instances of each image of a batch.

    Args:
        head: makes the chosen cells' masks.
        result: what it made of the pyramid.
        image_sizes: (height, width) of each image inside the padded input.
        original_sizes: (height, width) that the masks are wanted at.
        options: thresholds and limits.
        rle: masks as COCO's run lengths, straight from the coarse logits; needs pycocotools.

    Returns:
        For each image ``boxes`` float32 [N, 4], ``labels`` int64 [N], ``scores`` float32 [N] descending,
        ``masks`` bool [N, height, width], or N dicts {"size": [height, width], "counts": bytes}.
    """
    found = draw_candidates(head, result, options)
    kept = suppress(found, head.num_classes, options)
    return [
        _paste(kept.select((kept.image == i).nonzero().squeeze(1)), found, *sizes, options, rle)
        for i, sizes in enumerate(zip(image_sizes, original_sizes, strict=True))
    ]


def draw_candidates(head: Head, result: HeadResult, options: InferenceSettings) -> Drawn:
    """Steps 1 to 4: the cells with a score and their masks, without those that are too small."""
    # Level 1 is P3 itself, stride 8: its mask logits are at stride 4, where all masks are compared.
    out_size = (2 * result.features[1].shape[2], 2 * result.features[1].shape[3])
    nothing = result.features[0].new_empty(0, dtype=torch.int64)
    found = [Candidates(nothing, nothing, nothing.float(), nothing)]
    drawn = Drawn(found[0], [], [], [], out_size)
    chosen: dict[int, tuple[Candidates, Tensor]] = {}
    for k, logits in enumerate(result.category_logits):
        candidates, cells = find_candidates(points_nms(logits.float().sigmoid()), options.score_threshold)
        if len(cells):  # no mask tower for a level without candidates
            chosen[k] = candidates, cells
    result = head.prepare(result, {k: cells[:, 0].unique() for k, (_, cells) in chosen.items()})
    for k, (candidates, cells) in chosen.items():
        masks = head.cell_masks(result, k, cells, out_size)
        bits = mask_bits(*masks, out_size, options.mask_threshold)
        candidates.score = candidates.score * bits.maskness[candidates.mask].float()
        candidates = candidates.select((bits.areas[candidates.mask] > STRIDES[k]).nonzero().squeeze(1))
        candidates.mask = candidates.mask + sum(len(earlier.areas) for earlier in drawn.bits)
        found.append(candidates)
        drawn.cells.append((k, cells))
        drawn.masks.append(masks)
        drawn.bits.append(bits)
    return drawn._replace(candidates=_concatenate(found))


def _concatenate(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        torch.cat([part.image for part in parts]),
        torch.cat([part.label for part in parts]),
        torch.cat([part.score for part in parts]),
        torch.cat([part.mask for part in parts]),
    )


def suppress(drawn: Drawn, num_classes: int, options: InferenceSettings) -> Candidates:
    """Steps 5 to 8 for all images at once: labels are made to differ between images."""
    candidates = drawn.candidates.best(options.nms_pre)
    if len(candidates.mask) == 0:
        return candidates
    every = BitMasks(
        torch.cat([level.words for level in drawn.bits]),
        torch.cat([level.areas for level in drawn.bits]),
        torch.cat([level.maskness for level in drawn.bits]),
        drawn.out_size,
    )
    candidates.score = matrix_nms(
        every.select(candidates.mask),
        candidates.image * num_classes + candidates.label,
        candidates.score,
        options.nms_kernel,
        options.nms_sigma,
    )
    keep = (candidates.score >= options.final_score_threshold).nonzero().squeeze(1)
    return candidates.select(keep).best(options.max_detections)


def _paste(
    kept: Candidates,
    drawn: Drawn,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    options: InferenceSettings,
    rle: bool,
) -> dict[str, Any]:
    """Step 9 for one image."""
    count = 0 if rle else len(kept.mask)
    refuse_pixels("predict", count, original_size)
    # Each mask is of one of the levels below.
    masks = torch.empty(count, *original_size, dtype=torch.bool, device=kept.mask.device)
    runs: dict[int, Any] = {}
    start = 0
    for level in drawn.masks:
        local = kept.mask - start
        mine = ((local >= 0) & (local < len(level.coarse_logits))).nonzero().squeeze(1)
        if len(mine):
            chosen = local[mine]
            arguments = (
                level.coarse_logits[chosen],
                None if level.attention is None else level.attention[chosen],
                level.size,
                drawn.out_size,
                image_size,
                original_size,
                options.mask_threshold,
            )
            if rle:
                runs |= zip(mine.tolist(), paste_masks(*arguments, rle=True), strict=True)
            else:
                masks[mine] = paste_masks(*arguments)
        start += len(level.coarse_logits)
    found = {"labels": kept.label, "scores": kept.score}
    if not rle:
        return {"boxes": boxes_of(masks), **found, "masks": masks}
    in_order = [runs[k] for k in range(len(runs))]
    return {"boxes": boxes_of_runs(in_order).to(kept.label.device), **found, "masks": in_order}


def boxes_of_runs(masks: list[Any]) -> Tensor:
    """`boxes_of` of COCO's run lengths; needs pycocotools."""
    from pycocotools.mask import toBbox

    boxes = torch.from_numpy(toBbox(masks)).float().reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes of bool masks [N, H, W]: float32 [N, 4], xyxy with x2 = last column + 1; zeros where empty."""
    rows, columns = occupied(masks)
    (top, bottom), (left, right) = span(rows), span(columns)
    return torch.stack([left, top, right, bottom], dim=1).float() * rows.any(1)[:, None]
