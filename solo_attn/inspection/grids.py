"""What a grid setting makes of a data set: which objects get a cell, which collide; and a better setting.

Counted with the assignment that training uses (`solo_attn.models.targets.owners`), each image alone at the
size that the model resizes it to. Boxes and centres are scaled instead of masks: on the rare cell boundary
that moves an object to the next cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.solo import SIZE_DIVISIBLE, resized_size
from ..models.targets import CENTRE_FRACTION, MASK_STRIDES, cell_index, owners
from .objects import ObjectTable

CELLS_AT_ONCE = 2**20  # that are assigned; more images than these make are taken one part after the other

# The search of `propose`.
FACTORS = (1.0, 1.25, 1.5, 2.0)  # tried on the input size
SMALLEST = 8  # pixels of the input: two of the finest mask's, in a square of which a mask is four
TOO_SMALL = 0.05  # share of objects that may be smaller
# Where one level ends and the next begins, as quantiles of the objects' sizes.
QUANTILES = {
    "fifths": (0.2, 0.4, 0.6, 0.8),
    "thirds": (1 / 3, 5 / 9, 19 / 27, 65 / 81),  # each level takes a third of what is left
    "halves": (1 / 2, 3 / 4, 7 / 8, 15 / 16),
}
MASK_PIXELS = 8  # that an object where two levels meet is wide on the coarser one
OVERLAP = math.sqrt(2)  # each range reaches so far beyond both ends: together the factor 2 of SOLO's ranges
STEP = 4  # cells; a grid's side grows by multiples of it
GAIN = 0.001  # share of the objects that each of them has to help
BUDGET = 2.0  # times the cells of the setting before


@dataclass(frozen=True)
class GridSetting:
    """The settings of the model that decide which cell learns which object; see `build_solo`."""

    num_grids: tuple[int, ...]
    scale_ranges: tuple[tuple[float, float], ...]
    min_size: int
    max_size: int

    @property
    def cells(self) -> int:
        """Of all levels: the channels of the mask branch's outputs."""
        return sum(side * side for side in self.num_grids)


@dataclass(frozen=True)
class LevelCount:
    """One level.

    Attributes:
        num_grid: S.
        scale_range: sqrt of box area in pixels of the input, both ends inclusive.
        objects: within the range.
        centre_taken: of these, those whose centre's cell belongs to a later object.
        no_cell: of these, those that have no other cell of the level either.
        cells: that learn an object.
    """

    num_grid: int
    scale_range: tuple[float, float]
    objects: int
    centre_taken: int
    no_cell: int
    cells: int


@dataclass(frozen=True)
class GridCount:
    """All levels. Objects are counted once: in the first of the attributes below that fits, or not at all.

    Attributes:
        levels: each of the five.
        objects: all of them.
        no_level: in no range.
        no_cell: with no cell on any level: they are not learned.
        centre_taken: with a cell beside their centre only, on every level they are on.
        too_small: smaller than 8 x 8 pixels of the input, which is two by two of the finest mask's; counted
            apart from the others.
        cells: S x S of all levels.
        pixels: of an input, in the mean, padding included.
    """

    levels: tuple[LevelCount, ...]
    objects: int
    no_level: int
    no_cell: int
    centre_taken: int
    too_small: int
    cells: int
    pixels: float

    @property
    def collisions(self) -> int:
        """Objects that do not own the cell of their centre on any level."""
        return self.no_level + self.no_cell + self.centre_taken


@dataclass(frozen=True)
class _Input:
    """The objects as they lie in the padded inputs."""

    image: Tensor
    images: int
    side: Tensor
    area: Tensor
    centre: Tensor
    half: Tensor
    length: Tensor
    pixels: float


def count_cells(table: ObjectTable, setting: GridSetting) -> GridCount:
    """Assign every object of ``table`` to cells as training does, and count."""
    found = _resized(table, setting)
    total = len(found.side)
    on_level, own_cell, own_centre = (torch.zeros(total, dtype=torch.bool) for _ in range(3))
    levels = []
    for side, (low, high) in zip(setting.num_grids, setting.scale_ranges, strict=True):
        inside = (found.side >= low) & (found.side <= high)
        cell, centre, cells = _owned(found, inside, side)
        levels.append(
            LevelCount(
                side,
                (low, high),
                int(inside.sum()),
                int((inside & ~centre).sum()),
                int((inside & ~cell).sum()),
                cells,
            )
        )
        on_level, own_cell, own_centre = on_level | inside, own_cell | cell, own_centre | centre
    return GridCount(
        levels=tuple(levels),
        objects=total,
        no_level=int((~on_level).sum()),
        no_cell=int((on_level & ~own_cell).sum()),
        centre_taken=int((own_cell & ~own_centre).sum()),
        too_small=int((found.area < SMALLEST**2).sum()),
        cells=setting.cells,
        pixels=found.pixels,
    )


def propose(table: ObjectTable, setting: GridSetting, *, keep_size: bool = False) -> GridSetting:
    """A setting with fewer collisions, by a search that is small enough to be said in words.

    1. Input size: ``setting``'s times 1, 1.25, 1.5 or 2, the smallest at which at most 5 % of the objects are
       smaller than 8 x 8 pixels, else the largest. Collisions hardly depend on it, since cells are fractions
       of the image; what it decides is whether a mask has pixels enough.
    2. Ranges: ``setting``'s, scaled with the input, against ranges whose borders are quantiles of the
       objects' sizes (fifths, thirds, halves), no lower than 8 mask pixels of the coarser level, and that
       overlap by the factor 2 as SOLO's do.
    3. Grids: from ``setting``'s on, four, eight, ... more cells a side on that level where they help most
       objects for each cell they cost, again and again, until four more cells a side would help less than
       one object in a thousand or there would be more than twice the cells of before. No grid becomes
       coarser: what that costs in accuracy, counting cannot see.

    Of 2 those ranges are taken that leave the fewest collisions after 3; of equals, the fewest cells.

    Args:
        table: the objects.
        setting: to begin with.
        keep_size: leave step 1 out.

    Raises:
        ValueError: there is no object.
    """
    if len(table.area) == 0:
        raise ValueError("propose: expected at least one object, got none")
    factor = 1.0 if keep_size else _size_factor(table, setting)
    sized = _scaled(setting, factor)
    found = _resized(table, sized)
    candidates = [sized.scale_ranges, *(_ranges(found, q, sized.max_size) for q in QUANTILES.values())]
    tried = [_with_grids(found, replace(sized, scale_ranges=r), BUDGET * setting.cells) for r in candidates]
    return min(tried, key=lambda other: (count_cells(table, other).collisions, other.cells))


def input_sizes(sizes: Sequence[Sequence[int]], min_size: int, max_size: int) -> tuple[Any, Any]:
    """(height, width) of images in the model, int64 [M, 2]: resized, and padded to a multiple of 32.

    As torchvision's GeneralizedRCNNTransform does with a batch of one.
    """
    resized = [resized_size(size, min_size, max_size) for size in sizes]
    result = np.array(resized, dtype=np.int64).reshape(-1, 2)
    return result, -(-result // SIZE_DIVISIBLE) * SIZE_DIVISIBLE


def _resized(table: ObjectTable, setting: GridSetting) -> _Input:
    resized, padded = input_sizes(table.sizes.tolist(), setting.min_size, setting.max_size)
    ratio = (resized / table.sizes)[table.image]
    # A pixel is a square: its middle is scaled, not its number.
    centre = (table.centre + 0.5) * ratio - 0.5
    extent = torch.from_numpy(table.extent * ratio).float()
    return _Input(
        image=torch.from_numpy(table.image),
        images=len(table.sizes),
        side=extent.prod(1).sqrt(),
        area=torch.from_numpy(table.area * ratio.prod(1)),
        centre=torch.from_numpy(centre).float(),
        half=0.5 * CENTRE_FRACTION * extent,
        length=torch.from_numpy(padded[table.image]).float(),
        pixels=float(padded.prod(1).mean()),
    )


def _owned(found: _Input, inside: Tensor, side: int) -> tuple[Tensor, Tensor, int]:
    """Which objects have a cell of a level, which own that of their centre, and how many cells have one."""
    on_level = inside.nonzero().squeeze(1)
    cell, own, cells = torch.zeros_like(inside), torch.zeros_like(inside), 0
    step = max(1, CELLS_AT_ONCE // side**2)
    starts = range(0, found.images, step)
    # The objects lie in the order of their images.
    firsts = torch.searchsorted(found.image[on_level], torch.tensor(starts)).tolist()
    for start, chosen in zip(starts, on_level.tensor_split(firsts[1:]), strict=True):
        centre, length, image = found.centre[chosen], found.length[chosen], found.image[chosen] - start
        images = min(step, found.images - start)
        owner = owners(centre, found.half[chosen], length, side, image=image, images=images)
        row, column = cell_index(centre, length, side).clamp(0, side - 1).unbind(1)
        taken = owner[owner >= 0]
        cell[chosen[taken]] = True
        own[chosen] = owner[(image * side + row) * side + column] == torch.arange(len(chosen))
        cells += len(taken)
    return cell, own, cells


def _size_factor(table: ObjectTable, setting: GridSetting) -> float:
    for factor in FACTORS:
        small = _resized(table, _scaled(setting, factor)).area < SMALLEST**2
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


def _ranges(found: _Input, quantiles: Sequence[float], max_size: int) -> tuple[tuple[float, float], ...]:
    borders: list[float] = []
    for quantile, fine, coarse in zip(quantiles, MASK_STRIDES, MASK_STRIDES[1:], strict=False):
        lowest = MASK_PIXELS * coarse if coarse > fine else 0
        border = max(lowest, float(torch.quantile(found.side, quantile)))
        borders.append(max(border, borders[-1] * OVERLAP if borders else 0))
    lows = [1, *(math.floor(b / OVERLAP) for b in borders)]
    highs = [*(math.ceil(b * OVERLAP) for b in borders), max(2048, 2 * max_size)]
    return tuple((max(1, low), high) for low, high in zip(lows, highs, strict=True))


def _with_grids(found: _Input, setting: GridSetting, budget: float) -> GridSetting:
    """Grow one grid after the other, each time where it helps most for each cell."""
    inside = [(found.side >= low) & (found.side <= high) for low, high in setting.scale_ranges]
    known: dict[tuple[int, int], Tensor] = {}

    def centres(level: int, side: int) -> Tensor:
        if (level, side) not in known:
            known[level, side] = _owned(found, inside[level], side)[1]
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
