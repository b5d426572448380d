"""Where inference loses an object: its steps, repeated one at a time for the responsible cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..models import SOLO
from ..models.candidates import points_nms
from ..models.heads import STRIDES, CellMasks, Head, HeadResult
from ..models.inference import draw_candidates, instances, suppress
from ..models.layers import bilinear
from ..models.settings import InferenceSettings
from ..models.targets import find_objects, owned_cells, reduce_masks
from ..ops import MaskFactors, mask_bits, paste_masks, upsample_add

# Where a cell is lost, in the order of inference; the last is not lost.
_STAGES = ("score", "points_nms", "area", "limit", "matrix_nms", "limit", "taken")
_SCORE, _POINTS_NMS, _AREA, _NMS_PRE, _MATRIX_NMS, _MOST, _OUT = range(len(_STAGES))
_SURE = 50.0  # a logit whose sigmoid is 1 in float32, and that of its negative 0


@dataclass(frozen=True)
class Traced:
    """One image.

    Attributes:
        prediction: what `SOLO.predict` finds, with masks as run lengths.
        perfect_masks: the same where each cell of an object has that object's mask, as fine as its level's.
        perfect_scores: the same where each cell of an object has its mask's IoU for a score of the object's
            class, and all other scores are 0.
        lost: for each object where the best of its cells is lost, a key of `MISSED` in `errors`.
        iou: for each object the highest of its cells' masks, 0 without a cell.
        score: for each object the highest of its cells, of its class, 0 without a cell.
    """

    prediction: dict[str, Any]
    perfect_masks: dict[str, Any]
    perfect_scores: dict[str, Any]
    lost: list[str]
    iou: list[float]
    score: list[float]


@dataclass(frozen=True)
class _Own:
    """The responsible cells of a level: [K] each, and their target masks, [K, h, w]."""

    cell: Tensor
    owner: Tensor
    label: Tensor
    score: Tensor
    iou: Tensor
    stage: Tensor
    truth: Tensor


def trace(model: SOLO, image: Tensor, target: Mapping[str, Tensor], least_iou: float) -> Traced:
    """Follow the objects of one image through inference.

    The cells of an object are those that training would make responsible for it. Of those with a right mask,
    the one that gets furthest decides where the object is lost; if no mask is right, the mask is the reason.

    Args:
        model: in evaluation mode, on the device of the other arguments.
        image: float [3, H, W] in 0..1.
        target: its ``boxes`` [N, 4], ``labels`` [N] and ``masks`` [N, H, W].
        least_iou: from which a mask is right, inclusive.
    """
    batch, resized = model.transform([image], [dict(target)])
    assert resized is not None
    input_size = (batch.tensors.shape[2], batch.tensors.shape[3])
    sizes = (batch.image_sizes, [(image.shape[1], image.shape[2])])
    result, head, options = model.features(batch.tensors), model.head, model.settings
    found = find_objects(resized[0])
    out = _outcomes(head, result, options)
    own: list[_Own] = []
    without = {int(k): "level" for k in found.mask}
    for k, (low, high) in enumerate(options.scale_ranges):
        cell, index = owned_cells(found, input_size, head.num_grids[k], low, high)
        without |= {int(j): "collision" for j in found.mask[(found.side >= low) & (found.side <= high)]}
        owner, label = found.mask[index], found.labels[index]
        stride = head.mask_strides[k]
        size = (input_size[0] // stride, input_size[1] // stride)
        truth = reduce_masks(resized[0]["masks"], stride, size)[owner]
        score, runs, stage = _judge(head, result, options, k, cell, label, sizes, out)
        iou = _overlap(runs, target["masks"][owner])
        own.append(_Own(cell, owner, label, score, iou, stage, truth))
    lost, ious, scores = [], [], []
    for k in range(len(target["labels"])):
        mine = [(level, level.owner == k) for level in own]
        iou = torch.cat([level.iou[chosen] for level, chosen in mine])
        score = torch.cat([level.score[chosen] for level, chosen in mine])
        stage = torch.cat([level.stage[chosen] for level, chosen in mine])
        right = stage[iou >= least_iou]
        if len(iou) == 0:
            lost.append(without.get(k, "vanished"))
        else:
            lost.append(_STAGES[int(right.max())] if len(right) else "mask")
        ious.append(float(iou.max()) if len(iou) else 0.0)
        scores.append(float(score.max()) if len(iou) else 0.0)
    perfect: Any = _PerfectMasks(head, own)  # it has the parts of a head that candidates are drawn with
    found_by: list[dict[str, Any]] = []
    for one, given in ((head, result), (perfect, result), (head, _perfect_scores(result, own))):
        drawn = draw_candidates(one, given, options)  # as on a CPU, wherever it runs
        kept = suppress(drawn, head.num_classes, options)
        found_by += instances(kept, drawn, *sizes, options, rle=True)
    prediction, perfect_masks, perfect_scores = found_by
    return Traced(prediction, perfect_masks, perfect_scores, lost, ious, scores)


def _outcomes(head: Head, result: HeadResult, options: InferenceSettings) -> dict[tuple[int, int, int], int]:
    """The stage of each (level, cell, label) that became a candidate and was large enough."""
    drawn = draw_candidates(head, result, options)
    cells = [(k, cell) for k, found in drawn.cells for cell in found[:, 1].tolist()]

    def places(mask: int, label: int) -> tuple[int, int, int]:
        return (cells[mask][0], cells[mask][1], label)

    everything = options.model_copy(update={"final_score_threshold": 0.0, "max_detections": options.nms_pre})
    before = drawn.candidates
    known = dict(
        zip(map(places, before.mask.tolist(), before.label.tolist()), before.score.tolist(), strict=True)
    )
    stages = dict.fromkeys(known, _NMS_PRE)
    decayed = suppress(drawn, head.num_classes, everything)
    least = options.final_score_threshold
    for mask, label, score in zip(
        decayed.mask.tolist(), decayed.label.tolist(), decayed.score.tolist(), strict=True
    ):
        place = places(mask, label)
        stages[place] = _MOST if score >= least else _MATRIX_NMS if known[place] >= least else _SCORE
    kept = suppress(drawn, head.num_classes, options)
    for mask, label in zip(kept.mask.tolist(), kept.label.tolist(), strict=True):
        stages[places(mask, label)] = _OUT
    return stages


def _judge(
    head: Head,
    result: HeadResult,
    options: InferenceSettings,
    level: int,
    cell: Tensor,
    label: Tensor,
    sizes: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]],
    outcomes: Mapping[tuple[int, int, int], int],
) -> tuple[Tensor, list[Any], Tensor]:
    """Scores, masks (as run lengths at the image's size) and stages of some cells of a level."""
    logits = result.category_logits[level]
    scores = logits.float().sigmoid()
    before, after = (
        x[0, label].flatten(1).gather(1, cell[:, None])[:, 0] for x in (scores, points_nms(scores))
    )
    if len(cell) == 0:
        return before, [], torch.zeros_like(cell)
    out_size = result.compared_at
    masks = head.cell_masks(result, level, torch.stack([torch.zeros_like(cell), cell], dim=1), out_size)
    bits = mask_bits(*masks, out_size, options.mask_threshold)
    runs = paste_masks(*masks, out_size, sizes[0][0], sizes[1][0], options.mask_threshold, rle=True)
    stage = torch.full_like(cell, _AREA)
    for j, place in enumerate(zip(cell.tolist(), label.tolist(), strict=True)):
        stage[j] = outcomes.get((level, place[0], place[1]), _AREA)
    stage[bits.areas <= STRIDES[level]] = _AREA
    stage[after <= options.score_threshold] = _POINTS_NMS
    stage[before <= options.score_threshold] = _SCORE
    return before, runs, stage


def _overlap(runs: Sequence[Any], masks: Tensor) -> Tensor:
    """IoU of each mask with its truth [K, H, W], pair by pair."""
    pixels = masks.ne(0).cpu().numpy().astype(np.uint8)
    found = []
    for run, mask in zip(runs, pixels, strict=True):
        truth = coco_mask.encode(np.asfortranarray(mask))
        found.append(float(np.asarray(coco_mask.iou([run], [truth], [0])).item()))
    return torch.tensor(found, dtype=torch.float64, device=masks.device)


def _perfect_scores(result: HeadResult, own: Sequence[_Own]) -> HeadResult:
    logits = []
    for level, found in zip(result.category_logits, own, strict=True):
        made = torch.full_like(level, -_SURE, dtype=torch.float32)
        likely = found.iou.float().logit().clamp(-_SURE, _SURE)
        made[0].flatten(1)[found.label, found.cell] = likely
        logits.append(made)
    return result._replace(category_logits=tuple(logits))


class _PerfectMasks:
    """A head whose responsible cells predict the masks of their objects."""

    def __init__(self, head: Head, own: Sequence[_Own]) -> None:
        self.head, self.own = head, own
        self.num_classes, self.num_grids = head.num_classes, head.num_grids

    def prepare(self, result: HeadResult, images: Mapping[int, Tensor | None]) -> HeadResult:
        """The head's."""
        return self.head.prepare(result, images)

    masks_of = Head.masks_of  # of its own `cell_masks`

    def cell_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int] | None = None
    ) -> CellMasks:
        """The other cells have the masks of the head."""
        masks = self.head.cell_masks(result, level, cells, compared_at)
        coarse = masks.coarse_logits
        coarse = coarse.logits() if isinstance(coarse, MaskFactors) else coarse
        logits = upsample_add(coarse, masks.attention, masks.size).float()
        own = self.own[level]
        at, which = (cells[:, 1, None] == own.cell).nonzero().unbind(1)
        # A head may have masks of another size: a mask of probabilities 0 and 1, enlarged in the same way.
        likely = bilinear(own.truth[which, None].float(), masks.size)[:, 0]
        logits[at] = likely.logit().clamp(-_SURE, _SURE)
        return CellMasks(logits, None, masks.size)  # enlarged to their own size they stay as they are
