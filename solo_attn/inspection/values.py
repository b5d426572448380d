"""The values of a dataset's images, by which `model.percentiles` is chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data import CocoInstances
from ..data.images import sample_values

SHOWN = (0.0, 0.1, 0.5, 1.0, 50.0, 99.0, 99.5, 99.9, 100.0)  # per cent
LOOKED_AT = 20  # images


@dataclass(frozen=True)
class ImageValues:
    """What `image_values` found.

    Attributes:
        images: the number of images that were read.
        dtypes: dtype of their values -> images.
        percentiles: per cent, ascending.
        lowest: each percentile's value in the channel of an image where it is lowest.
        median: in the median channel of an image.
        highest: where it is highest.
    """

    images: int
    dtypes: dict[str, int]
    percentiles: tuple[float, ...]
    lowest: list[float]
    median: list[float]
    highest: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Dict of plain types, for JSON."""
        return asdict(self)


def image_values(dataset: CocoInstances, count: int = LOOKED_AT) -> ImageValues:
    """Percentiles of the unscaled values of each channel, over ``count`` images that are evenly spread.

    NaN and infinity are left out.

    Raises:
        ImageError: an image that cannot be read.
    """
    ids = dataset.image_ids
    chosen = [ids[round(k)] for k in np.linspace(0, len(ids) - 1, min(count, len(ids)))]
    dtypes: Counter[str] = Counter()
    found = []
    for image_id in chosen:
        values = sample_values(dataset.path_of(image_id))
        dtypes[str(values.dtype)] += 1
        for channel in values.astype(np.float64):
            finite = channel[np.isfinite(channel)]
            if finite.size:
                found.append(np.percentile(finite, SHOWN))
    table = np.stack(found) if found else np.zeros((1, len(SHOWN)))
    rows = (table.min(0), np.median(table, axis=0), table.max(0))
    return ImageValues(len(chosen), dict(dtypes), SHOWN, *([float(x) for x in row] for row in rows))
