"""A model's results on one page: metrics, curves, pictures, the worst images."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..data import CocoInstances
from ..data.validate import is_object
from .coco_metrics import CocoMetrics, matched
from .curves import curve_figure
from .errors import MISSED, ErrorReport, kind_of, unmatched
from .pictures import draw_instances, found_in, paint, spread
from .report_page import Bar, Section, counted, per_cent, photograph, plot, write_page
from .tables import Rows, summary_json

SIDE = 560  # pixels of a picture's longer side, of which two stand beside each other
WIDE = 1600  # and of one that stands alone
PICTURES, WORST = 4, 6
MOST_CLASSES = 100
MEANING = {"found": "found", "missed": "missed, or no object", "twice": "found twice"}
STATES = {"found": "#1a9850", "missed": "#d73027", "no object": "#d73027", "twice": "#fdae3d"}


@dataclass
class _Faults:
    """Of an image: annotations and results by their number, at the score and IoU 0.5."""

    objects: int = 0
    found: int = 0
    missed: set[int] = field(default_factory=set)
    false: dict[int, str] = field(default_factory=dict)

    @property
    def worth(self) -> float:
        """F1, the share of objects and instances that belong together."""
        right = self.objects - len(self.missed)
        return 2 * right / max(1, self.objects + self.found)


def write_report(
    path: str | Path,
    dataset: CocoInstances,
    results: Sequence[Mapping[str, Any]],
    metrics: CocoMetrics,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
    test_metrics: CocoMetrics | None = None,
    errors: ErrorReport | None = None,
    score_threshold: float = 0.3,
) -> None:
    """Write one HTML file without external files, which can be opened, mailed and stored by itself.

    Args:
        path: of the file.
        dataset: the images, with `eval_transforms`.
        results: COCO results with run lengths, as `evaluate_model` gives them.
        metrics: their metrics.
        title: of the page.
        facts: name -> value, shown below the title.
        curve: dicts with ``step`` and the values logged at it.
        test_metrics: of other images, shown beside ``metrics``.
        errors: the report of `find_errors`, for the reasons of missed objects.
        score_threshold: scores from which instances are drawn and counted as found or not, inclusive.

    Raises:
        OSError: ``path`` cannot be written.
    """
    evaluation = _accumulated(dataset, results, metrics.max_detections)
    above = [one for one in results if one["score"] >= score_threshold]
    faults = _faults(dataset, above, metrics.max_detections)
    states = Counter(kind for one in faults.values() for kind in one.false.values())
    missed = sum(len(one.missed) for one in faults.values())
    numbers = {
        "AP": per_cent(metrics.ap),
        "AP50": per_cent(metrics.ap50),
        "AP75": per_cent(metrics.ap75),
        f"missed of {sum(one.objects for one in faults.values())} objects": str(missed),
        "further instances of found objects": str(states["duplicate"]),
    }
    drawn = curve_figure(curve) if any("train/loss_mask" in row or "val/ap" in row for row in curve) else None
    since = f"Left the objects, right the instances with scores from {score_threshold:g}"
    sections = [
        Section("AP by class", "Per cent, averaged over IoU 0.50 to 0.95.", _classes(evaluation, dataset)),
        Section("AP by size", bars=_sizes(metrics)),
        Section("Precision and recall", pictures=_precision(evaluation)),
        Section("Learning curve", pictures=[] if drawn is None else [plot(drawn)]),
        Section(
            "Objects and instances",
            f"{since}: images evenly spread from few objects to many.",
            pictures=[_beside(dataset, index, above) for index in spread(dataset, PICTURES)],
        ),
        Section(
            "What goes wrong",
            f"Of instances with scores from {score_threshold:g}; a match has an IoU of 0.5 or more.",
            rows=[
                ["", "count"],
                ["objects that are missed", str(missed)],
                ["further instances of an object that is found", str(states["duplicate"])],
                ["instances with too inexact a mask", str(states["mask"])],
                ["instances of the wrong class", str(states["class"] + states["both"])],
                ["instances where no object is", str(states["background"])],
            ],
        ),
        Section(
            "Why objects are missed", "With all scores, by the step of inference.", rows=_reasons(errors)
        ),
        Section(
            "The worst images",
            f"{since}: those where the fewest belong together.",
            pictures=_worst(dataset, above, faults),
            key={STATES[one]: meaning for one, meaning in MEANING.items()},
        ),
        Section("All numbers", rows=_table(metrics, test_metrics)),
    ]
    images = {"images": str(len(dataset)), "classes": str(dataset.num_classes)}
    write_page(path, title, {**images, **(facts or {})}, numbers, sections)


def write_comparison_report(
    path: str | Path,
    rows: Rows,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    pictures: Mapping[str, str | Path] | None = None,
) -> None:
    """Write one HTML file of several systems; see `write_report`.

    Args:
        path: of the file.
        rows: a system's name -> the metrics of its seeds.
        title: of the page.
        facts: name -> value, shown below the title.
        curves: a system's name -> the logged values of one of its trainings.
        pictures: a heading -> an image file.

    Raises:
        OSError: ``path`` cannot be written, or a picture read.
    """
    found = summary_json(rows)["systems"]
    columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    table = [["", *(column.replace("_", " ").replace("ap", "AP") for column in columns)]]
    for name, one in found.items():
        cells = []
        for column in columns:
            mean, deviation = one["mean"][column], one["std"][column]
            cells.append(per_cent(mean) + ("" if deviation is None else f" ± {100 * deviation:.1f}"))
        table.append([name, *cells])
    means = {name: one["mean"]["ap"] for name, one in found.items()}
    most = max(len(seeds) for seeds in rows.values())
    over_seeds = "; mean and standard deviation over the seeds" if most > 1 else ""
    best = max(means, key=lambda name: means[name] or 0.0)
    sections = [
        Section("AP", bars=[Bar(name, mean) for name, mean in means.items()]),
        Section("All numbers", f"Per cent{over_seeds}.", rows=table),
        *(
            Section(heading, pictures=[photograph(Image.open(file), WIDE)])
            for heading, file in (pictures or {}).items()
        ),
        Section("AP while training", pictures=_progress(curves or {}, most)),
    ]
    numbers = {
        "best AP": per_cent(means[best]),
        "best system": best,
        "seeds of each": str(most),
    }
    write_page(path, title, facts or {}, numbers, sections)


def _accumulated(dataset: CocoInstances, results: Sequence[Mapping[str, Any]], most: int) -> COCOeval:
    evaluation = matched(dataset.coco, results, max_detections=most)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation


def _faults(dataset: CocoInstances, above: Sequence[Mapping[str, Any]], most: int) -> dict[int, _Faults]:
    """Of each image."""
    matches = matched(dataset.coco, above, max_detections=most)
    missed, false, _ = unmatched(matches, 0)
    found = {image_id: _Faults(len(dataset.objects_of(image_id))) for image_id in dataset.image_ids}
    annotations = dataset.coco.dataset["annotations"]
    for result in above:
        found[result["image_id"]].found += 1
    for number in missed:
        if is_object(annotations[number]):
            found[annotations[number]["image_id"]].missed.add(number)
    for number in false:
        found[above[number]["image_id"]].false[number] = kind_of(matches, number, 0.5)[0]
    return found


def _table(metrics: CocoMetrics, test: CocoMetrics | None) -> list[list[str]]:
    columns = [("validation" if test is not None else "", metrics), *([("test", test)] if test else [])]
    rows = [["per cent", *(name for name, _ in columns)]]
    for name in metrics.as_dict():
        label = name.replace("_", ", ").replace("ap", "AP").replace("ar", "AR", 1 if name[:2] == "ar" else 0)
        rows.append([label, *(per_cent(getattr(one, name)) for _, one in columns)])
    return rows


def _sizes(metrics: CocoMetrics) -> list[Bar]:
    names = {"small (below 32²)": "small", "medium (below 96²)": "medium", "large": "large"}
    values = {name: getattr(metrics, f"ap_{key}") for name, key in names.items()}
    return [Bar(name, None if value < 0 else value) for name, value in values.items()]


def _classes(evaluation: COCOeval, dataset: CocoInstances) -> list[Bar]:
    """By AP, with how many objects each has."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    objects = Counter(one["category_id"] for one in dataset.coco.dataset["annotations"] if is_object(one))
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    bars = []
    for place, category in enumerate(evaluation.params.catIds):
        defined = precision[:, :, place][precision[:, :, place] > -1]
        value = float(defined.mean()) if defined.size else None
        bars.append(Bar(names[category], value, counted(objects[category], "object")))
    bars.sort(key=lambda bar: -1.0 if bar.value is None else bar.value, reverse=True)
    return bars[:MOST_CLASSES]


def _precision(evaluation: COCOeval) -> list[Any]:
    precision = np.ma.masked_less(evaluation.eval["precision"][:, :, :, 0, -1], 0)
    if precision.count() == 0:
        return []
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for iou, colour in ((0.5, "#2f6f8f"), (0.75, "#d08a2e"), (0.9, "#8a5a83")):
        place = int(np.isclose(evaluation.params.iouThrs, iou).argmax())
        line = precision[place].mean(axis=1)
        axes.plot(100 * evaluation.params.recThrs, 100 * line, color=colour, label=f"IoU {iou:g}")
    axes.set(xlabel="recall, per cent", ylabel="precision, per cent", xlim=(0, 100), ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return [plot(figure, "Mean over the classes.")]


def _progress(curves: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int) -> list[Any]:
    series = {
        name: [(row["step"], 100 * row["val/ap"]) for row in rows if row.get("val/ap", -1) >= 0]
        for name, rows in curves.items()
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return []
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=3, label=name)
    axes.set(xlabel="step", ylabel="AP, per cent")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return [plot(figure, f"On the validation images{', of the first seed' if seeds > 1 else ''}.")]


def _reasons(errors: ErrorReport | None) -> list[list[str]]:
    if errors is None or not errors.missed:
        return []
    counted = Counter(one.reason for one in errors.missed)
    return [
        ["", "objects"],
        *([meaning, str(counted[key])] for key, meaning in MISSED.items() if counted[key]),
    ]


def _beside(dataset: CocoInstances, index: int, above: Sequence[Mapping[str, Any]]) -> Any:
    image, target = dataset[index]
    mine = [one for one in above if one["image_id"] == int(target["image_id"])]
    truth = {key: target[key] for key in ("boxes", "labels", "masks")}
    found = found_in(mine, dataset.category_ids, image.shape[1:])
    names, objects = dataset.class_names, len(target["labels"])
    panels = [draw_instances(image, one, names, score_threshold=0.0) for one in (truth, found)]
    told = f"{counted(objects, 'object')}, {counted(len(mine), 'instance')}"
    return _pair(panels, f"{_file(dataset, index)}: {told}")


def _worst(
    dataset: CocoInstances, above: Sequence[Mapping[str, Any]], faults: Mapping[int, _Faults]
) -> list[Any]:
    wrong = [k for k in dataset.image_ids if faults[k].missed or faults[k].false]
    wrong.sort(key=lambda k: (faults[k].worth, -len(faults[k].missed) - len(faults[k].false)))
    number_of = {id(one): k for k, one in enumerate(dataset.coco.dataset["annotations"])}
    shown = []
    for image_id in wrong[:WORST]:
        fault, index = faults[image_id], dataset.image_ids.index(image_id)
        image, target = dataset[index]
        objects = dataset.objects_of(image_id)
        lost = ["missed" if number_of[id(one)] in fault.missed else "found" for one in objects]
        mine = [k for k, one in enumerate(above) if one["image_id"] == image_id]
        mine.sort(key=lambda k: -above[k]["score"])
        kinds = {"duplicate": "twice"}
        wrongly = [kinds.get(fault.false[k], "no object") if k in fault.false else "found" for k in mine]
        masks = ([*target["masks"]], [above[k]["segmentation"] for k in mine])
        panels = [
            paint(_bytes(image), drawn, [_rgb(STATES[state]) for state in states], 0.45)
            for drawn, states in zip(masks, (lost, wrongly), strict=True)
        ]
        twice = wrongly.count("twice")
        caption = (
            f"{_file(dataset, index)}: of {counted(fault.objects, 'object')} {len(fault.missed)} missed, "
            f"{twice} further instances of found ones; {len(fault.false) - twice} false"
        )
        shown.append(_pair(panels, caption))
    return shown


def _pair(panels: Sequence[Tensor], caption: str) -> Any:
    """Two pictures beside each other, each at most `SIDE` wide and high."""
    pictures = [to_pil_image(panel) for panel in panels]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    width, height = pictures[0].size
    canvas = Image.new("RGB", (2 * width + 8, height), "white")
    for place, picture in enumerate(pictures):
        canvas.paste(picture, (place * (width + 8), 0))
    return photograph(canvas, 2 * SIDE + 8, caption)


def _bytes(image: Tensor) -> Tensor:
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _file(dataset: CocoInstances, index: int) -> str:
    return str(dataset.coco.imgs[dataset.image_ids[index]]["file_name"])
