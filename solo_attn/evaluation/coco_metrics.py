"""COCO's twelve numbers by pycocotools, from the model's predictions."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .._utils.checks import Prediction, check_prediction, replacing
from ..data.segmentation import run_pixels
from ..data.validate import MEASURES, is_finite
from ..ops._checks import fail

METRICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""The twelve numbers in COCO's order."""


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's twelve numbers in 0..1, -1 where the ground truth leaves one undefined (no large object, say).

    AP is averaged over IoU 0.50:0.95 and classes, ap50 and ap75 over classes; sizes are small below 32^2
    pixels of ground truth area, medium below 96^2, large above. ar1 and ar10 take the best 1 and 10 of an
    image, everything else, **ar100 too**, the best ``max_detections``.

    Source: https://cocodataset.org/#detection-eval, pycocotools' COCOeval.stats.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    max_detections: int = 100

    def as_dict(self) -> dict[str, float]:
        """The twelve numbers by name, in COCO's order."""
        return {name: getattr(self, name) for name in METRICS}

    def table(self) -> str:
        """COCO's twelve lines as COCOeval.summarize prints them, but in per cent; "–" where undefined."""
        lines = []
        for name, value in self.as_dict().items():
            title = "Average Precision  (AP)" if name.startswith("ap") else "Average Recall     (AR)"
            iou = {"ap50": "0.50", "ap75": "0.75"}.get(name, "0.50:0.95")
            area = name.partition("_")[2] or "all"
            limit = {"ar1": 1, "ar10": 10}.get(name, self.max_detections)
            shown = "–" if value < 0 else f"{100 * value:.1f}"
            lines.append(f" {title} @[ IoU={iou:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {shown}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def coco_results(image_id: int, prediction: Prediction, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's instances as COCO results, ready for `json`.

    Args:
        image_id: COCO's id of the image.
        prediction: ``boxes`` float [N, 4] xyxy in pixels, ``labels`` int64 [N], ``scores`` float [N],
            ``masks`` bool [N, H, W] at the image's original size.
        category_ids: the COCO category id of each label.

    Returns:
        N dicts: ``image_id``, ``category_id``, ``bbox`` xywh, ``score`` and ``segmentation``, a compressed
        RLE whose counts are a str.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, or a label has no category id.
    """
    check_prediction("coco_results", prediction, len(category_ids))
    boxes = prediction["boxes"].detach().cpu().double().clone()
    boxes[:, 2:] -= boxes[:, :2]
    labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
    masks = prediction["masks"].detach().cpu().numpy().astype(np.uint8, copy=False)
    results = []
    for label, score, box, mask in zip(labels, scores, boxes.tolist(), masks, strict=True):
        rle = mask_utils.encode(np.asfortranarray(mask))
        counts = rle["counts"]
        results.append(
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": box,
                "score": float(score),
                "segmentation": {
                    "size": [int(side) for side in rle["size"]],
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                },
            }
        )
    return results


def write_results(path: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write COCO results as JSON; ``path`` is either left as it was or complete.

    Raises:
        OSError: ``path`` cannot be written.
    """
    with replacing("write_results", path) as temporary:
        temporary.write_text(json.dumps(list(results)))


def evaluate(
    coco_gt: COCO | str | Path,
    results: Sequence[Mapping[str, Any]] | str | Path,
    *,
    iou_type: Literal["segm", "bbox"] = "segm",
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
) -> CocoMetrics:
    """COCO's evaluation of ``results``, neither argument changed, nothing printed.

    Made right where pycocotools alone goes wrong or stops: no results at all; annotations whose id is 0
    (taken for "no match") or used twice; results with ``bbox`` beside ``segmentation`` (sized by the box,
    which moves them between small, medium and large); masks of another size than the image (never matched,
    without a word).

    Args:
        coco_gt: ground truth, a COCO object or its JSON file; ``info`` and ``licenses`` are not needed.
        results: COCO results as `coco_results` makes them, or a JSON file of them.
        iou_type: "segm", or "bbox" for the boxes.
        image_ids: evaluate these images only; results on other images are left out.
        max_detections: best results of an image that count, at least 10. COCO's numbers are defined with 100;
            data with more objects an image needs more, and is then not to be compared with others' at 100.
            pycocotools prints AP -1 without a limit of 100; here AP is that of ``max_detections``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: bad JSON, a result lacks something or has what cannot be used (a score that is no number,
            run lengths of another number of pixels), or is for an image or category that ``coco_gt`` does not
            have; likewise an annotation of ``coco_gt``.
    """
    if iou_type not in ("segm", "bbox"):
        fail("evaluate", "iou_type", "'segm' or 'bbox'", repr(iou_type))
    if max_detections < 10:
        fail("evaluate", "max_detections", "of at least 10", str(max_detections))
    loaded = _read_json("results", results) if isinstance(results, (str, Path)) else results
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _ground_truth(coco_gt, iou_type)
        checked = _checked(truth, loaded, iou_type)
        detections = truth.loadRes(checked) if checked else _index({**truth.dataset, "annotations": []})
        evaluation = COCOeval(truth, detections, iou_type)
        if image_ids is not None:
            _known("image_ids", image_ids, truth.imgs, "images")
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: dict[str, Any] = {n: float(v) for n, v in zip(METRICS, evaluation.stats, strict=True)}
    # summarize() looks AP, alone of the twelve, up at a limit of 100 whatever the limits are.
    # precision is [IoU, recall, class, area, limit]; area 0 is "all".
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    defined = precision[precision > -1]
    stats["ap"] = float(defined.mean()) if defined.size else -1.0
    return CocoMetrics(**stats, max_detections=max_detections)


def _read_json(argument: str, path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"evaluate: expected {argument} to be a JSON file, got '{path}' (no such file)"
        )
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(
            f"evaluate: expected {argument} to be a JSON file, got '{path}' ({error})"
        ) from error


def _index(dataset: Any) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _ground_truth(coco_gt: COCO | str | Path, iou_type: str) -> COCO:
    """A COCO object of our own: COCOeval writes into the annotations, and ids must be unique and not 0."""
    dataset = coco_gt.dataset if isinstance(coco_gt, COCO) else _read_json("coco_gt", coco_gt)
    parts = ("images", "annotations", "categories")
    if not isinstance(dataset, dict) or any(part not in dataset for part in parts):
        got = sorted(dataset) if isinstance(dataset, dict) else type(dataset).__name__
        fail("evaluate", "coco_gt", f"to have {', '.join(parts)}", str(got))
    shape = "segmentation" if iou_type == "segm" else "bbox"
    annotations = []
    for number, annotation in enumerate(dataset["annotations"]):
        missing = [k for k in ("image_id", "category_id", "area", shape) if k not in annotation]
        if missing:
            fail(
                "evaluate", f"annotations[{number}] of coco_gt", f"to have {missing}", str(sorted(annotation))
            )
        for key, (right, expected) in MEASURES.items():
            if key in annotation and not right(annotation[key]):
                where = f"annotations[{number}][{key!r}] of coco_gt"
                fail("evaluate", where, f"to be {expected}", f"{annotation[key]!r:.80}")
        if iou_type == "segm" and isinstance(annotation[shape], Mapping):
            _check_runs(f"annotations[{number}]['segmentation'] of coco_gt", annotation[shape])
        annotations.append({"iscrowd": 0, **annotation, "id": number + 1})
    return _index({"info": {}, **dataset, "annotations": annotations})


def _checked(truth: COCO, results: Any, iou_type: str) -> list[dict[str, Any]]:
    """Copies of the results with what ``iou_type`` needs and no more, since loadRes writes into them."""
    if not isinstance(results, Sequence):
        fail("evaluate", "results", "to be a list of COCO results", type(results).__name__)
    shape = "segmentation" if iou_type == "segm" else "bbox"
    keys = ("image_id", "category_id", "score", shape)
    copies = []
    for number, result in enumerate(results):
        where = f"results[{number}]"
        if not isinstance(result, Mapping) or any(key not in result for key in keys):
            got = sorted(result) if isinstance(result, Mapping) else type(result).__name__
            fail("evaluate", where, f"to have {', '.join(keys)}", str(got))
        _known(f"{where}['image_id']", [result["image_id"]], truth.imgs, "images")
        _known(f"{where}['category_id']", [result["category_id"]], truth.cats, "categories")
        if not is_finite(result["score"]):
            fail("evaluate", f"{where}['score']", "a finite number", f"{result['score']!r:.80}")
        if iou_type == "segm":
            _check_rle(f"{where}['segmentation']", result[shape], truth.imgs[result["image_id"]])
        elif not _is_box(result[shape]):
            fail("evaluate", f"{where}['bbox']", "[x, y, width, height], finite", f"{result[shape]!r:.80}")
        copies.append({key: result[key] for key in keys})
    return copies


def _known(argument: str, ids: Sequence[int], known: Mapping[int, Any], what: str) -> None:
    for one in ids:
        if one not in known:
            fail("evaluate", argument, f"among the {len(known)} {what} of coco_gt", f"the unknown id {one!r}")


def _is_box(box: Any) -> bool:
    return hasattr(box, "__len__") and len(box) == 4 and all(map(is_finite, box))


def _check_rle(argument: str, rle: Any, image: Mapping[str, Any]) -> None:
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), (str, bytes)) or not _has_size(rle):
        fail("evaluate", argument, "a compressed RLE {'size': [H, W], 'counts': str}", f"{str(rle)[:80]}")
    size = [image.get("height"), image.get("width")]
    if None not in size and list(rle["size"]) != size:
        fail("evaluate", argument, f"of the image's size [H, W] = {size}", str(list(rle["size"])))
    _check_runs(argument, rle)


def _check_runs(argument: str, rle: Mapping[str, Any]) -> None:
    """Refuse runs that end before the mask does, or beyond it: pycocotools does not return from some."""
    if not _has_size(rle) or "counts" not in rle:
        fail("evaluate", argument, "an RLE {'size': [H, W], 'counts': ...}", f"{str(rle)[:80]}")
    expected, pixels = int(rle["size"][0]) * int(rle["size"][1]), run_pixels(rle["counts"])
    if pixels != expected:
        got = f"no run lengths {rle['counts']!r:.60}" if pixels is None else str(pixels)
        fail("evaluate", argument, f"with runs of {expected} pixels in all", got)


def _has_size(rle: Mapping[str, Any]) -> bool:
    size = rle.get("size")
    if not isinstance(size, (list, tuple, np.ndarray)) or len(size) != 2:
        return False
    return all(isinstance(side, (int, np.integer)) and side >= 0 for side in size)
