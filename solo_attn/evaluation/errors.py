"""Why a model misses objects, what its false positives are, and the AP with perfect masks or scores.

The kinds of false positives are TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", arXiv:2008.08115). Its package `tidecv` is not used: it reads only results, so it cannot
say at which step an object was lost, and it needs OpenCV, pandas and seaborn for what takes forty lines of
code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from .._utils.checks import fail
from .._utils.files import replacing
from .._utils.text import quantity
from ..data import CocoInstances
from ..formats import coco_results
from ..models import SOLO
from .coco_metrics import CocoMetrics, evaluate, matched
from .trace import trace

MISSED = {
    "vanished": "no pixel is left of it in the model's input",
    "level": "no cell: its size is in the range of no level",
    "collision": "no cell: all its cells belong to other objects",
    "mask": "the mask of none of its cells has enough IoU",
    "score": "the score of its cells is too low",
    "points_nms": "points-NMS removed its cell beside a better neighbour",
    "area": "its mask has too few pixels for its level",
    "limit": "beyond nms_pre or max_detections",
    "matrix_nms": "Matrix NMS lowered its score too far",
    "taken": "found, but matched to another object or beyond the evaluation's limit",
}
"""Why an object is missed, in the order of inference."""

FALSE = {
    "mask": "an object of its class, with too low an IoU",
    "class": "an object of another class",
    "duplicate": "an object that another instance matches already",
    "background": "no object",
    "both": "an object of another class, with too low an IoU",
}
"""What a false positive is, in TIDE's order."""

BACKGROUND_IOU = 0.1  # TIDE's


@dataclass(frozen=True)
class Missed:
    """An object that no instance matches.

    Attributes:
        image_id, annotation_id, category_id: COCO's.
        area: pixels, of the annotation.
        reason: a key of `MISSED`.
        iou: the highest of its cells' masks, 0 without a cell.
        score: the highest category score of its cells, 0 without a cell.
    """

    image_id: int
    annotation_id: int
    category_id: int
    area: float
    reason: str
    iou: float
    score: float


@dataclass(frozen=True)
class FalsePositive:
    """An instance that matches no object.

    Attributes:
        image_id, category_id: COCO's.
        result: its index in the results.
        score: its score.
        kind: a key of `FALSE`.
        iou: the highest with an object of any class.
    """

    image_id: int
    category_id: int
    result: int
    score: float
    kind: str
    iou: float


@dataclass(frozen=True)
class ErrorReport:
    """What `find_errors` found.

    Attributes:
        metrics: of the unchanged model.
        perfect_masks: if the cells of objects predicted the objects' masks, at the resolution of their level.
        perfect_scores: if the scores of the objects' cells were the IoU of their masks, and others were 0.
        objects: the number of objects, without crowds.
        missed: the objects that no instance matches.
        false_positives: all of them, also with low scores.
        iou: the least IoU of a match.
    """

    metrics: CocoMetrics
    perfect_masks: CocoMetrics
    perfect_scores: CocoMetrics
    objects: int
    missed: tuple[Missed, ...]
    false_positives: tuple[FalsePositive, ...]
    iou: float

    def as_dict(self) -> dict[str, Any]:
        """Plain types, counts first."""
        return {
            "iou": self.iou,
            "objects": self.objects,
            "missed_by_reason": _counts((one.reason for one in self.missed), MISSED),
            "false_positives_by_kind": _counts((one.kind for one in self.false_positives), FALSE),
            **{
                name: getattr(self, name).as_dict() for name in ("metrics", "perfect_masks", "perfect_scores")
            },
            "max_detections": self.metrics.max_detections,
            "missed": [asdict(one) for one in self.missed],
            "false_positives": [asdict(one) for one in self.false_positives],
        }

    def save(self, path: str | Path) -> None:
        """Write `as_dict` as JSON.

        Raises:
            OSError: ``path`` cannot be written.
        """
        with replacing(path, "errors") as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    def table(self) -> str:
        """Counts by reason and kind, and AP with perfect masks and with perfect scores."""
        lines = [f"{len(self.missed)} of {quantity(self.objects, 'object')} missed at IoU {self.iou:g}"]
        lines += _rows(Counter(one.reason for one in self.missed), MISSED, self.objects)
        lines.append(f"{quantity(len(self.false_positives), 'instance')} that match no object")
        lines += _rows(Counter(one.kind for one in self.false_positives), FALSE, len(self.false_positives))
        lines.append("per cent                     AP   AP50   AP75")
        for name, metrics in {
            "as it is": self.metrics,
            "with perfect masks": self.perfect_masks,
            "with perfect scores": self.perfect_scores,
        }.items():
            values = (metrics.ap, metrics.ap50, metrics.ap75)
            shown = "  ".join("    –" if value < 0 else f"{100 * value:5.1f}" for value in values)
            lines.append(f"  {name:<22} {shown}")
        return "\n".join(lines)

    def draw(self, path: str | Path) -> None:
        """Plot the counts of `table` as bars.

        Args:
            path: an image file; its suffix (.png, .svg, .pdf) says the format.

        Raises:
            OSError: ``path`` cannot be written.
        """
        figure = Figure(figsize=(8, 5), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=[len(MISSED), len(FALSE)])
        for axes, found, names, title in (
            (upper, Counter(one.reason for one in self.missed), MISSED, f"missed of {self.objects} objects"),
            (
                lower,
                Counter(one.kind for one in self.false_positives),
                FALSE,
                "instances that match no object",
            ),
        ):
            bars = axes.barh([names[key] for key in names], [found[key] for key in names], color="tab:red")
            axes.bar_label(bars, padding=2)
            axes.invert_yaxis()
            axes.margins(x=0.1)
            axes.set_title(title, loc="left")
        with replacing(path, "errors") as temporary:
            figure.savefig(temporary, dpi=150)


def find_errors(
    model: SOLO,
    dataset: CocoInstances,
    *,
    iou: float = 0.5,
    max_detections: int = 100,
    advance: Callable[[int], None] | None = None,
) -> tuple[ErrorReport, list[dict[str, Any]]]:
    """Evaluate a model, and give each missed object a reason and each false positive a kind.

    Args:
        model: on the device that it shall run on.
        dataset: with `eval_transforms`.
        iou: the least IoU of a match, one of COCO's ten: 0.5, 0.55, ..., 0.95.
        max_detections: how many of an image's instances count, the best first.
        advance: called with 1 after each image.

    Returns:
        The report, and the results as `evaluate_model` gives them.

    Raises:
        ValueError: another ``iou``; or a model that predicts by tiles, and an image that is not exactly one:
            an object has cells in several tiles then.
    """
    thresholds = np.linspace(0.5, 0.95, 10)
    if not np.isclose(thresholds, iou).any():
        fail("find_errors", "iou", "to be one of 0.5, 0.55, ..., 0.95", repr(iou))
    tile = model.settings.tile
    for image_id in dataset.image_ids if tile is not None else ():
        size = (dataset.coco.imgs[image_id]["height"], dataset.coco.imgs[image_id]["width"])
        if size != (tile, tile):
            fail("find_errors", f"image id {image_id}", f"to be one tile, {tile} x {tile} pixels", f"{size}")
    device = next(model.parameters()).device
    model.eval()
    every: list[list[dict[str, Any]]] = [[], [], []]
    reasons: dict[int, tuple[str, float, float]] = {}  # by id(): annotations may share an id
    for index in range(len(dataset)):
        image, target = dataset[index]
        image_id = int(target["image_id"])
        with torch.inference_mode():
            target = {name: value.to(device) for name, value in target.items()}
            traced = trace(model, image.to(device), target, iou)
        for results, found in zip(
            every, (traced.prediction, traced.perfect_masks, traced.perfect_scores), strict=True
        ):
            results += coco_results(image_id, found, dataset.category_ids)
        objects = dataset.objects_of(image_id)
        reasons |= zip(map(id, objects), zip(traced.lost, traced.iou, traced.score, strict=True), strict=True)
        if advance is not None:
            advance(1)
    metrics, masks, scores = (
        evaluate(dataset.coco, results, max_detections=max_detections) for results in every
    )
    annotations = dataset.coco.dataset["annotations"]
    matches = matched(dataset.coco, every[0], max_detections=max_detections)
    missed, false, count = unmatched(matches, int(np.isclose(thresholds, iou).argmax()))
    lost = []
    for number in missed:
        one = annotations[number]
        # A box without width or height is no object to the model.
        reason, best, score = reasons.get(id(one), ("vanished", 0.0, 0.0))
        place = (one["image_id"], one["id"], one["category_id"], float(one["area"]))
        lost.append(Missed(*place, reason, best, score))
    wrong = [
        FalsePositive(
            result["image_id"], result["category_id"], number, result["score"], *kind_of(matches, number, iou)
        )
        for number, result in ((number, every[0][number]) for number in false)
    ]
    return ErrorReport(metrics, masks, scores, count, tuple(lost), tuple(wrong), iou), every[0]


def unmatched(matches: COCOeval, threshold: int) -> tuple[list[int], list[int], int]:
    """Indices of the annotations and of the results that match nothing, and how many objects there are."""
    missed: list[int] = []
    false: list[int] = []
    count = 0
    everything = matches.params.areaRng[0]
    for found in matches.evalImgs:
        if found is None or found["aRng"] != everything:
            continue
        counts = np.logical_not(found["gtIgnore"])
        count += int(counts.sum())
        alone = counts & (found["gtMatches"][threshold] == 0)
        missed += [int(number) - 1 for number in np.asarray(found["gtIds"])[alone]]
        alone = (found["dtMatches"][threshold] == 0) & np.logical_not(found["dtIgnore"][threshold])
        false += [int(number) - 1 for number in np.asarray(found["dtIds"])[alone]]
    return sorted(missed), sorted(false), count


def kind_of(matches: COCOeval, number: int, iou: float) -> tuple[str, float]:
    """What an unmatched result is, by TIDE's rules in TIDE's order, and its highest IoU with an object."""
    truth: Any = matches  # pycocotools' type hints lack what it keeps
    result = truth.cocoDt.anns[number + 1]
    objects = [
        one
        for category in truth.params.catIds
        for one in truth._gts[result["image_id"], category]
        if not one["iscrowd"]
    ]
    if not objects:
        return "background", 0.0
    masks = [one["segmentation"] for one in objects]
    overlap = coco_mask.iou([result["segmentation"]], masks, [0] * len(masks))[0]
    same = np.array([one["category_id"] == result["category_id"] for one in objects])
    mine, others = (float(overlap[which].max(initial=0.0)) for which in (same, ~same))
    if BACKGROUND_IOU <= mine < iou:
        kind = "mask"
    elif others >= iou:
        kind = "class"
    elif mine >= iou:
        kind = "duplicate"
    elif others < BACKGROUND_IOU:
        kind = "background"
    else:
        kind = "both"
    return kind, max(mine, others)


def _counts(found: Any, names: dict[str, str]) -> dict[str, int]:
    counted = Counter(found)
    return {name: counted[name] for name in names}


def _rows(counted: Counter[str], names: dict[str, str], total: int) -> Sequence[str]:
    return [
        f"  {counted[key]:>6}  {100 * counted[key] / total:5.1f} %  {meaning}"
        for key, meaning in names.items()
        if counted[key]
    ]
