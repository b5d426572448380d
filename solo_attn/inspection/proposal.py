"""A grid setting with fewer collisions, found by a short search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..models.targets import MASK_STRIDES
from .grids import SMALLEST, GridSetting, ResizedObjects, count_cells, owned_cells, resized_objects
from .objects import ObjectTable

FACTORS = (1.0, 1.25, 1.5, 2.0)  # tried on the input size
TOO_SMALL = 0.05  # largest share of objects that may be smaller than SMALLEST
# Where one level ends and the next begins, as quantiles of the objects' sizes.
QUANTILES = {
    "fifths": (0.2, 0.4, 0.6, 0.8),
    "thirds": (1 / 3, 5 / 9, 19 / 27, 65 / 81),  # each level takes a third of what is left
    "halves": (1 / 2, 3 / 4, 7 / 8, 15 / 16),
}
MASK_PIXELS = 8  # least width, on the coarser level, of an object at the bound of two levels
OVERLAP = math.sqrt(
    2
)  # factor by which each range extends beyond its bounds: neighbours overlap by 2, like SOLO's
STEP = 4  # cells; a grid's side grows by multiples of it
GAIN = 0.001  # least share of the objects that each step has to help
BUDGET = 2.0  # largest factor on the number of cells


def propose(table: ObjectTable, setting: GridSetting, *, keep_size: bool = False) -> GridSetting:
    """A setting with fewer collisions, found by a short search.

    1. Input size: that of ``setting`` times 1, 1.25, 1.5 or 2, namely the smallest at which at most 5 % of
       the objects are smaller than 8 x 8 pixels, or the largest if none is enough. Collisions hardly depend
       on it, since cells are fractions of the image; it decides whether a mask has enough pixels.
    2. Ranges: those of ``setting``, scaled with the input, and three others, whose bounds are quantiles of
       the objects' sizes (fifths, thirds, halves), at least 8 mask pixels of the coarser level. Neighbouring
       ranges overlap by a factor of 2, like SOLO's.
    3. Grids: beginning with those of ``setting``, the level where 4, 8, ... more cells per side help the most
       objects per added cell gets them, repeatedly, until 4 more would help less than one object in a
       thousand or the number of cells would more than double. No grid is made coarser, since the counting
       cannot tell what that costs in accuracy.

    The result has the ranges of step 2 that leave the fewest collisions after step 3; if several do, those
    with the fewest cells.

    Args:
        table: the objects.
        setting: the setting to begin with.
        keep_size: skip step 1.

    Raises:
        ValueError: ``table`` has no object.
    """
    if len(table.area) == 0:
        raise ValueError("propose: expected at least one object, got none")
    factor = 1.0 if keep_size else _size_factor(table, setting)
    sized = _scaled(setting, factor)
    found = resized_objects(table, sized)
    candidates = [sized.scale_ranges, *(_ranges(found, q, sized.max_size) for q in QUANTILES.values())]
    tried = [_with_grids(found, replace(sized, scale_ranges=r), BUDGET * setting.cells) for r in candidates]
    return min(tried, key=lambda other: (count_cells(table, other).collisions, other.cells))


def _size_factor(table: ObjectTable, setting: GridSetting) -> float:
    for factor in FACTORS:
        small = resized_objects(table, _scaled(setting, factor)).area < SMALLEST**2
        if float(small.double().mean()) <= TOO_SMALL:
            return factor
    return FACTORS[-1]


def _scaled(setting: GridSetting, factor: float) -> GridSetting:
    """The input ``factor`` times as large, and the ranges with it."""
    if factor == 1:
        return setting
    ranges = tuple(
        (low if low <= 1 else round(low * factor), round(high * factor)) for low, high in setting.scale_ranges
    )
    return GridSetting(
        setting.num_grids, ranges, round(setting.min_size * factor), round(setting.max_size * factor)
    )


def _ranges(
    found: ResizedObjects, quantiles: Sequence[float], max_size: int
) -> tuple[tuple[float, float], ...]:
    borders: list[float] = []
    for quantile, fine, coarse in zip(quantiles, MASK_STRIDES, MASK_STRIDES[1:], strict=False):
        lowest = MASK_PIXELS * coarse if coarse > fine else 0
        border = max(lowest, float(torch.quantile(found.side, quantile)))
        borders.append(max(border, borders[-1] * OVERLAP if borders else 0))
    lows = [1, *(math.floor(b / OVERLAP) for b in borders)]
    highs = [*(math.ceil(b * OVERLAP) for b in borders), max(2048, 2 * max_size)]
    return tuple((max(1, low), high) for low, high in zip(lows, highs, strict=True))


def _with_grids(found: ResizedObjects, setting: GridSetting, budget: float) -> GridSetting:
    """Enlarge one grid at a time, the one where it helps the most objects per added cell."""
    inside = [(found.side >= low) & (found.side <= high) for low, high in setting.scale_ranges]
    known: dict[tuple[int, int], Tensor] = {}

    def centres(level: int, side: int) -> Tensor:
        if (level, side) not in known:
            known[level, side] = owned_cells(found, inside[level], side)[1]
        return known[level, side]

    grids = list(setting.num_grids)
    while True:
        own = torch.stack([centres(level, side) for level, side in enumerate(grids)])
        left = budget - sum(side * side for side in grids)
        best, grown = 0.0, (0, 0)
        for level, side in enumerate(grids):
            most = int((inside[level] & ~own.any(0)).sum())
            if most < max(1, GAIN * len(found.side)):
                continue
            others = own[torch.arange(len(grids)) != level].any(0)
            # Not only the next step: objects in rows may need several before any of them is helped.
            for larger in range(side + STEP, math.isqrt(int(side * side + left)) + 1, STEP):
                gain = int((others | centres(level, larger)).sum()) - int(own.any(0).sum())
                worth = gain / (larger**2 - side**2)
                if gain >= max(1, GAIN * len(found.side) * (larger - side) / STEP) and worth > best:
                    best, grown = worth, (level, larger)
        if best == 0:
            return replace(setting, num_grids=tuple(grids))
        grids[grown[0]] = grown[1]
