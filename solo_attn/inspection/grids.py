"""Which objects of a dataset get a cell with a grid setting, and which collide.

This uses the assignment of training (`solo_attn.models.targets.owners`), for each image alone, at the size
that the model resizes it to. Boxes and centres are scaled instead of masks, which sometimes moves an object
on the boundary of a cell to the neighbouring cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.solo import SIZE_DIVISIBLE, resized_size
from ..models.targets import CENTRE_FRACTION, cell_index, owners
from .objects import ObjectTable

SMALLEST = 8  # pixels of the input, which are two pixels of the finest mask
CELLS_AT_ONCE = 2**20  # assigned at a time, which limits the memory


@dataclass(frozen=True)
class GridSetting:
    """The settings of the model that decide which cell learns which object; see `build_solo`."""

    num_grids: tuple[int, ...]
    scale_ranges: tuple[tuple[float, float], ...]
    min_size: int
    max_size: int

    @property
    def cells(self) -> int:
        """The number of cells of all levels, which are the channels of the mask branch's outputs."""
        return sum(side * side for side in self.num_grids)


@dataclass(frozen=True)
class LevelCount:
    """One level.

    Attributes:
        num_grid: S.
        scale_range: sqrt of box area in pixels of the input, both ends inclusive.
        objects: the number of objects within the range.
        centre_taken: of these, those whose centre's cell belongs to a later object.
        no_cell: of these, those without any cell of the level.
        cells: the number of cells that learn an object.
    """

    num_grid: int
    scale_range: tuple[float, float]
    objects: int
    centre_taken: int
    no_cell: int
    cells: int


@dataclass(frozen=True)
class GridCount:
    """The counts over all levels. An object counts in one of no_level, no_cell and centre_taken at most.

    Attributes:
        levels: each of the five.
        objects: all of them.
        no_level: in no level's range.
        no_cell: without a cell on any level: they are not learned.
        centre_taken: only with cells beside their centre, on each of their levels.
        too_small: smaller than 8 x 8 pixels of the input, which is 2 x 2 of the finest mask; they are counted
            in addition to the other kinds.
        cells: S x S, summed over the levels.
        pixels: mean number of pixels of an input, padding included.
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
class ResizedObjects:
    """The objects in the coordinates of the padded inputs."""

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
    found = resized_objects(table, setting)
    total = len(found.side)
    on_level, own_cell, own_centre = (torch.zeros(total, dtype=torch.bool) for _ in range(3))
    levels = []
    for side, (low, high) in zip(setting.num_grids, setting.scale_ranges, strict=True):
        inside = (found.side >= low) & (found.side <= high)
        cell, centre, cells = owned_cells(found, inside, side)
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


def input_sizes(sizes: Sequence[Sequence[int]], min_size: int, max_size: int) -> tuple[Any, Any]:
    """(height, width) of images in the model, int64 [M, 2]: resized, and padded to a multiple of 32.

    As torchvision's GeneralizedRCNNTransform does with a batch of one.
    """
    resized = [resized_size(size, min_size, max_size) for size in sizes]
    result = np.array(resized, dtype=np.int64).reshape(-1, 2)
    return result, -(-result // SIZE_DIVISIBLE) * SIZE_DIVISIBLE


def resized_objects(table: ObjectTable, setting: GridSetting) -> ResizedObjects:
    """The objects of ``table`` in the inputs that ``setting`` resizes their images to."""
    resized, padded = input_sizes(table.sizes.tolist(), setting.min_size, setting.max_size)
    ratio = (resized / table.sizes)[table.image]
    # A pixel is a square: its middle is scaled, not its number.
    centre = (table.centre + 0.5) * ratio - 0.5
    extent = torch.from_numpy(table.extent * ratio).float()
    return ResizedObjects(
        image=torch.from_numpy(table.image),
        images=len(table.sizes),
        side=extent.prod(1).sqrt(),
        area=torch.from_numpy(table.area * ratio.prod(1)),
        centre=torch.from_numpy(centre).float(),
        half=0.5 * CENTRE_FRACTION * extent,
        length=torch.from_numpy(padded[table.image]).float(),
        pixels=float(padded.prod(1).mean()),
    )


def owned_cells(found: ResizedObjects, inside: Tensor, side: int) -> tuple[Tensor, Tensor, int]:
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
