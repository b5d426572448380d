"""Sizes and positions of all objects of a dataset, computed from their run lengths without decoding masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .._utils.run_lengths import run_lengths
from ..data.coco import CocoInstances


@dataclass(frozen=True)
class ObjectTable:
    """N objects of M images, in the order of training; empty masks are left out.

    Attributes:
        sizes: int64 [M, 2], (height, width) of each image.
        image: int64 [N], number of the image in the dataset's order, ascending.
        label: int64 [N], in 0..C-1.
        area: int64 [N], pixels of the mask.
        centre: float64 [N, 2], (y, x) of the mask's centre of mass, in pixel indices.
        extent: float64 [N, 2], (height, width) of the mask's box, in pixels.
    """

    sizes: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    area: NDArray[np.int64]
    centre: NDArray[np.float64]
    extent: NDArray[np.float64]

    @property
    def per_image(self) -> NDArray[np.int64]:
        """Objects of each image, int64 [M]."""
        return np.bincount(self.image, minlength=len(self.sizes))


def measure_objects(dataset: CocoInstances) -> ObjectTable:
    """The objects of a dataset without crowd regions. Reads no image."""
    coco = dataset.coco
    sizes = [(coco.imgs[k]["height"], coco.imgs[k]["width"]) for k in dataset.image_ids]
    labels = {category: label for label, category in enumerate(dataset.category_ids)}
    whole, real = [], []
    for number, image_id in enumerate(dataset.image_ids):
        objects = dataset.objects_of(image_id)
        encoded: list[Any] = [coco.annToRLE(cast(Any, a)) for a in objects]
        boxes = coco_mask.toBbox(encoded) if encoded else ()
        for entry, rle, box in zip(objects, encoded, boxes, strict=True):
            area, y, x = _moments(rle["counts"], sizes[number][0])
            if area:
                whole.append((number, labels[entry["category_id"]], area))
                real.append((y / area, x / area, box[3], box[2]))
    integers = np.array(whole, dtype=np.int64).reshape(-1, 3)
    floats = np.array(real, dtype=np.float64).reshape(-1, 4)
    image, label, pixels = integers.T
    return ObjectTable(np.array(sizes, dtype=np.int64), image, label, pixels, floats[:, :2], floats[:, 2:])


def _moments(counts: str | bytes, height: int) -> tuple[int, int, int]:
    """(number, sum of y, sum of x) of a mask's pixels, exactly, from compressed run lengths."""
    ends = _run_ends(counts.encode() if isinstance(counts, str) else counts)
    ends = ends[: len(ends) // 2 * 2]  # runs of 0 and 1 alternate; a last run of 0 has no run of 1 after it
    columns, rest = np.divmod(ends, height)
    # Sums over the first t pixels, counted down the columns, for each run's end t.
    y = columns * (height * (height - 1) // 2) + rest * (rest - 1) // 2
    x = height * (columns * (columns - 1) // 2) + columns * rest
    number, sum_y, sum_x = ((before[1::2] - before[0::2]).sum() for before in (ends, y, x))
    return int(number), int(sum_y), int(sum_x)


def _run_ends(counts: bytes) -> NDArray[np.int64]:
    """Where each run ends, from COCO's compressed string."""
    runs = run_lengths(counts)
    assert runs is not None  # pycocotools has made them
    return np.cumsum(runs)
