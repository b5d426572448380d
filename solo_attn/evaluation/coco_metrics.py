"""COCO's twelve numbers by pycocotools, from the model's predictions."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.utils.data import DataLoader

from .._utils.checks import fail, is_finite, is_integer
from .._utils.text import shown
from ..data import CocoInstances, collate
from ..data.segmentation import run_length_fault
from ..data.validate import check_ground_truth, read_annotations
from ..formats import coco_results
from ..models import SOLO

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


def evaluate(
    coco_gt: COCO | str | Path,
    results: Sequence[Mapping[str, Any]] | str | Path,
    *,
    iou_type: Literal["segm", "bbox"] = "segm",
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
) -> CocoMetrics:
    """COCO's evaluation of ``results``, neither argument changed, nothing printed.

    It handles cases where pycocotools alone is wrong or stops: no results at all; annotations with the id 0
    (which means "no match" to it) or a duplicate id; results with both ``bbox`` and ``segmentation`` (it uses
    the box's size, which moves them between small, medium and large); masks of another size than the image
    (never matched, without a message).

    Args:
        coco_gt: ground truth, a COCO object or its JSON file; ``info`` and ``licenses`` are not needed.
        results: COCO results as `coco_results` makes them, or a JSON file of them.
        iou_type: "segm", or "bbox" for the boxes.
        image_ids: evaluate these images only; results on other images are left out.
        max_detections: how many of an image's results count, the best first; at least 10. COCO's numbers are
            defined with 100; images with more objects need more, and then the numbers are not comparable with
            those at 100. With another limit than 100, pycocotools prints AP -1; here AP is that of the limit.

    Raises:
        DatasetError: faults of ``coco_gt``, by the checks that training has too.
        FileNotFoundError: the file of results is missing.
        ValueError: bad JSON, a result lacks something or has what cannot be used (a score that is no number,
            run lengths of another number of pixels), or is for an image or category that ``coco_gt`` does not
            have.
    """
    evaluation = matched(
        coco_gt, results, iou_type=iou_type, image_ids=image_ids, max_detections=max_detections
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    stats: dict[str, Any] = {n: float(v) for n, v in zip(METRICS, evaluation.stats, strict=True)}
    # summarize() reads AP, and only AP, at a limit of 100, whatever the limits are.
    # precision is [IoU, recall, class, area, limit]; area 0 is "all".
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    defined = precision[precision > -1]
    stats["ap"] = float(defined.mean()) if defined.size else -1.0
    return CocoMetrics(**stats, max_detections=max_detections)


def matched(
    coco_gt: COCO | str | Path,
    results: Sequence[Mapping[str, Any]] | str | Path,
    *,
    iou_type: Literal["segm", "bbox"] = "segm",
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
) -> COCOeval:
    """COCO's evaluation up to the matching of results and ground truth; see `evaluate`.

    The k-th annotation of ``coco_gt`` has the id k + 1 in it, and so has the k-th result.
    """
    if iou_type not in ("segm", "bbox"):
        fail("evaluate", "iou_type", "'segm' or 'bbox'", repr(iou_type))
    if max_detections < 10:
        fail("evaluate", "max_detections", "of at least 10", str(max_detections))
    loaded = _read_results(results) if isinstance(results, (str, Path)) else results
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
    return evaluation


def evaluate_model(
    model: SOLO,
    dataset: CocoInstances,
    *,
    batch_size: int = 1,
    workers: int = 0,
    max_detections: int = 100,
    advance: Callable[[int], None] | None = None,
) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """COCO's twelve numbers of a model on a dataset, and the results they were made from.

    Args:
        model: on the device to run on.
        dataset: with `eval_transforms`.
        batch_size: images at a time.
        workers: processes that load images.
        max_detections: how many of an image's instances count, the best first; COCO's numbers are defined
            with 100.
        advance: called with the number of images done after each batch.
    """
    device = next(model.parameters()).device
    loader = DataLoader(dataset, batch_size, collate_fn=collate, num_workers=workers)
    model.eval()
    results: list[dict[str, Any]] = []
    for images, targets in loader:
        with torch.inference_mode():
            predictions = model.predict([image.to(device) for image in images], rle=True)
        for target, prediction in zip(targets, predictions, strict=True):
            results += coco_results(int(target["image_id"]), prediction, dataset.category_ids)
        if advance is not None:
            advance(len(images))
    return evaluate(dataset.coco, results, max_detections=max_detections), results


def _read_results(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"evaluate: expected results to be a JSON file, got '{path}' (no such file)")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"evaluate: expected results to be a JSON file, got '{path}' ({error})") from error


def _index(dataset: Any) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _ground_truth(coco_gt: COCO | str | Path, iou_type: str) -> COCO:
    """A COCO object of our own: COCOeval writes into the annotations, and ids must be unique and not 0."""
    dataset: Any = coco_gt.dataset if isinstance(coco_gt, COCO) else read_annotations(coco_gt)
    name = "evaluate: coco_gt" if isinstance(coco_gt, COCO) else coco_gt
    check_ground_truth(dataset, name, "segmentation" if iou_type == "segm" else "bbox")
    annotations = [{"iscrowd": 0, **one, "id": k + 1} for k, one in enumerate(dataset["annotations"])]
    return _index({"info": {}, **dataset, "annotations": annotations})


def _checked(truth: COCO, results: Any, iou_type: str) -> list[dict[str, Any]]:
    """Copies of the results with only what ``iou_type`` needs, since loadRes writes into them."""
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
        if not _is_score(result["score"]):
            fail("evaluate", f"{where}['score']", "a finite number", shown(result["score"]))
        if iou_type == "segm":
            _check_rle(f"{where}['segmentation']", result[shape], truth.imgs[result["image_id"]])
        elif not _is_box(result[shape]):
            fail("evaluate", f"{where}['bbox']", "[x, y, width, height], finite", shown(result[shape]))
        copies.append({key: result[key] for key in keys})
    return copies


def _known(argument: str, ids: Sequence[int], known: Mapping[int, Any], what: str) -> None:
    for one in ids:
        if not is_integer(one, -(2**63)) or one not in known:
            fail(
                "evaluate",
                argument,
                f"among the {len(known)} {what} of coco_gt",
                f"the unknown id {shown(one)}",
            )


def _is_score(value: Any) -> bool:
    """A finite number, or a tensor of one."""
    return is_finite(value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)


def _is_box(box: Any) -> bool:
    return hasattr(box, "__len__") and len(box) == 4 and all(map(is_finite, box))


def _check_rle(argument: str, rle: Any, image: Mapping[str, Any]) -> None:
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), (str, bytes)):
        fail("evaluate", argument, "a compressed RLE {'size': [H, W], 'counts': str}", shown(rle))
    fault = run_length_fault(rle, (image["height"], image["width"]))
    if fault is not None:
        raise ValueError(f"evaluate: {argument}: {fault}")
