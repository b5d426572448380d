"""What a data set is, in numbers and in one picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf
from torchvision.utils import make_grid

from .._utils.checks import replacing
from ..data import CocoInstances
from ..data.validate import is_object
from ..evaluation.pictures import draw_instances
from .grids import GridCount, GridSetting, count_cells, propose
from .objects import ObjectTable, measure_objects

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COCO_SIZES = (32**2, 96**2)  # pixels, where COCO parts small from medium from large
TILE = 320  # pixels of the contact sheet's pictures


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
        setting: the one that was asked about.
        count: what it makes of the objects.
        proposal: a better one, or ``setting`` again where the search found none.
        proposal_count: what that makes of them.
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
    """Measure a data set, and propose a grid setting for it (see `propose`). Reads no image.

    Args:
        dataset: what to look at.
        setting: of the model that is to learn it.
        keep_size: propose no other input size.

    Raises:
        ValueError: there is no object.
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


def contact_sheet(dataset: CocoInstances, path: str | Path, *, count: int = 12, columns: int = 4) -> None:
    """A picture of ``count`` images with their masks, from the one with most objects to the emptiest.

    Args:
        dataset: what to draw; its ``transforms`` must be None.
        path: a PNG.
        count: images, evenly spread over the order by number of objects.
        columns: images in a row.

    Raises:
        DatasetError: an image that cannot be read.
        OSError: ``path`` cannot be written.
    """
    # Without crowd regions and boxes of no size: what is drawn counts.
    numbers = [sum(map(is_object, dataset.coco.imgToAnns.get(k, []))) for k in dataset.image_ids]
    order = sorted(range(len(numbers)), key=lambda index: -numbers[index])
    chosen = [order[round(k)] for k in np.linspace(0, len(order) - 1, min(count, len(order)))]
    tiles = []
    for index in chosen:
        image, target = dataset[index]
        factor = TILE / max(image.shape[1:])
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        masks = tvf.resize(target["masks"], size).as_subclass(torch.Tensor)
        shown = {"boxes": target["boxes"].as_subclass(torch.Tensor) * factor, "labels": target["labels"]}
        drawn = draw_instances(
            tvf.resize(image, size, antialias=True).as_subclass(torch.Tensor),
            {**shown, "masks": masks},
            dataset.class_names,
        )
        low, left = (TILE - side for side in size)
        tiles.append(torch.nn.functional.pad(drawn, (0, left, 0, low), value=255))
    sheet = make_grid(torch.stack(tiles), nrow=columns, padding=4, pad_value=255)
    with replacing("contact_sheet", path) as temporary:
        tvf.to_pil_image(sheet).save(temporary)


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(q), 1) for q in np.quantile(values, QUANTILES)]


def _classes(table: ObjectTable, names: list[str]) -> dict[str, tuple[int, int]]:
    objects = np.bincount(table.label, minlength=len(names))
    pairs = np.unique(np.stack([table.label, table.image]), axis=1)
    images = np.bincount(pairs[0], minlength=len(names))
    return {names[k]: (int(objects[k]), int(images[k])) for k in np.argsort(-objects, kind="stable")}
