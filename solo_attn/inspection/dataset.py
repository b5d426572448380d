"""Statistics of a dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data import CocoInstances
from .grids import GridCount, GridSetting, count_cells
from .objects import ObjectTable, measure_objects
from .proposal import propose

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COCO_SIZES = (32**2, 96**2)  # pixels: COCO's limits between small, medium and large


@dataclass(frozen=True)
class Inspection:
    """What `inspect_dataset` found.

    Attributes:
        summary: the counts of `check_dataset` in words.
        images: how many.
        objects: how many, crowd regions left out.
        per_image: objects of an image, at `QUANTILES`.
        side: square root of an object's pixels in the image's own size, at `QUANTILES`.
        small: objects below 32 x 32 pixels in the image's own size, COCO's "small".
        medium: those from there to 96 x 96.
        large: those above.
        image_sizes: "WIDTH x HEIGHT" -> images, the most frequent first.
        classes: name -> (objects, images with one), the most frequent first.
        setting: the given setting.
        count: the objects that it loses.
        proposal: a better setting, or ``setting`` if the search found none.
        proposal_count: the objects that the proposal loses.
    """

    summary: str
    images: int
    objects: int
    per_image: list[float]
    side: list[float]
    small: int
    medium: int
    large: int
    image_sizes: dict[str, int]
    classes: dict[str, tuple[int, int]]
    setting: GridSetting
    count: GridCount
    proposal: GridSetting
    proposal_count: GridCount

    def as_dict(self) -> dict[str, Any]:
        """Nested dict of plain types, for JSON."""
        return asdict(self)


def inspect_dataset(dataset: CocoInstances, setting: GridSetting, *, keep_size: bool = False) -> Inspection:
    """Measure a dataset, and propose a grid setting for it (see `propose`). Reads no image.

    Args:
        dataset: the dataset.
        setting: of the model that will be trained on it.
        keep_size: do not change the input size.

    Raises:
        ValueError: the dataset has no object.
    """
    table = measure_objects(dataset)
    proposal = propose(table, setting, keep_size=keep_size)
    sizes, numbers = np.unique(table.sizes, axis=0, return_counts=True)
    small, medium, _ = np.searchsorted(np.sort(table.area), (*COCO_SIZES, np.inf))
    return Inspection(
        summary=str(dataset.summary),
        images=len(table.sizes),
        objects=len(table.area),
        per_image=_quantiles(table.per_image),
        side=_quantiles(np.sqrt(table.area)),
        small=int(small),
        medium=int(medium - small),
        large=int(len(table.area) - medium),
        image_sizes={
            f"{sizes[k][1]} x {sizes[k][0]}": int(numbers[k]) for k in np.argsort(-numbers, kind="stable")
        },
        classes=_classes(table, dataset.class_names),
        setting=setting,
        count=count_cells(table, setting),
        proposal=proposal,
        proposal_count=count_cells(table, proposal),
    )


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(q), 1) for q in np.quantile(values, QUANTILES)]


def _classes(table: ObjectTable, names: list[str]) -> dict[str, tuple[int, int]]:
    objects = np.bincount(table.label, minlength=len(names))
    pairs = np.unique(np.stack([table.label, table.image]), axis=1)
    images = np.bincount(pairs[0], minlength=len(names))
    return {names[k]: (int(objects[k]), int(images[k])) for k in np.argsort(-objects, kind="stable")}
