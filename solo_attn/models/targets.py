"""Which cells are responsible for which object, and their target masks (docs/method.md, "Targets")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Mask logits are twice as large as the maps that the head sees (strides 8, 8, 16, 32, 32).
MASK_STRIDES = (4, 4, 8, 16, 16)
CENTRE_FRACTION = 0.2
BACKGROUND = -1


class LevelTargets(NamedTuple):
    """Targets of one level for a batch.

    Attributes:
        labels: int64 [B, S, S]; `BACKGROUND` where no object is responsible.
        cells: int64 [K, 2], (image, cell) of the positive cells.
        masks: bool [K, H, W], what each positive cell should draw, at the level's mask-logit size.
        collisions: how many of the K repeat a cell, for an object that does not give its label.
    """

    labels: Tensor
    cells: Tensor
    masks: Tensor
    collisions: int = 0

    @property
    def positives(self) -> int:
        """The number of positive cells."""
        return len(self.cells) - self.collisions


class Objects(NamedTuple):
    """What the assignment needs of an image's N objects; empty masks are left out."""

    labels: Tensor  # int64 [N]
    mask: Tensor  # int64 [N], which of the image's masks
    side: Tensor  # sqrt of the box's area, [N]
    centre: Tensor  # (y, x) of the mask's centre of mass, in pixel indices, [N, 2]
    half: Tensor  # half the (height, width) of the centre region, [N, 2]


def find_objects(target: Mapping[str, Tensor]) -> Objects:
    """Sizes and centres of an image's objects, from its boxes (xyxy, x2 = x1 + w), labels and masks."""
    counts = count_rows(target["masks"]), count_columns(target["masks"])
    mask = counts[0].any(1).nonzero().squeeze(1)
    boxes, labels = target["boxes"][mask].float(), target["labels"][mask]
    extent = (boxes[:, 2:] - boxes[:, :2]).flip(1)  # (height, width)
    sums = []
    for count in counts:  # along y, then along x
        weights = count[mask].double()
        index = torch.arange(weights.shape[1], device=weights.device, dtype=torch.float64)
        sums.append((weights * index).sum(1) / weights.sum(1))
    centre = torch.stack(sums, dim=1).float()
    return Objects(labels, mask, extent.prod(1).sqrt(), centre, 0.5 * CENTRE_FRACTION * extent)


def count_rows(masks: Tensor) -> Tensor:
    """The number of non-zero pixels in each row of masks [N, H, W]: int64 [N, H]."""
    parts = _words(masks).split(255, dim=2)
    return torch.stack([_bytes_of(part.sum(2)).sum(2) for part in parts]).sum(0)


def count_columns(masks: Tensor) -> Tensor:
    """Pixels in each column, as `count_rows`: int64 [N, W]."""
    parts = _words(masks).split(255, dim=1)
    counts = torch.stack([_bytes_of(part.sum(1)).flatten(1) for part in parts]).sum(0)
    return counts[:, : masks.shape[2]]


def _words(masks: Tensor) -> Tensor:
    """Eight pixels a word, as the bytes 0 or 1 of an int64: [N, H, ceil(W / 8)].

    A sum of up to 255 words adds each of their bytes without a carry. Summing bool instead would first make
    eight bytes of each pixel.
    """
    count, height, width = masks.shape
    if count == 0:  # contiguous() may keep other strides, such as those of a rotated image
        return masks.new_zeros(0, height, -(-width // 8), dtype=torch.int64)
    pixels = as_bytes(masks).contiguous()
    if width % 8 or pixels.storage_offset() % 8:
        pixels = F.pad(pixels, (0, -width % 8))
    return pixels.view(torch.int64)


def _bytes_of(words: Tensor) -> Tensor:
    """The eight bytes of each word of [N, M]: int64 [N, M, 8]."""
    return words.contiguous().view(torch.uint8).long().unflatten(1, (words.shape[1], 8))


def as_bytes(masks: Tensor) -> Tensor:
    """1 where a value is not zero: uint8, without a copy where they are bool."""
    return (masks if masks.dtype == torch.bool else masks.ne(0)).view(torch.uint8)


def cell_index(position: Tensor, length: Tensor, side: int) -> Tensor:
    """cell(v, L, S) = trunc((v / L) / (1 / S)), in float32."""
    return ((position / length) / (1 / side)).trunc().long()


def reduce_masks(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Full-size masks [N, H, W] to bool [N, *size], 1 / stride of the padded input's size.

    A pixel is set if at least 2 of the 4 centre pixels of its stride x stride block are, which equals cv2's
    bilinear resize of 0/1 bytes. Pixels of the padding are 0.
    """
    pixels, first = as_bytes(masks), stride // 2 - 1
    # Rows first: they are contiguous in memory.
    rows = pixels.new_zeros(len(masks), size[0], masks.shape[2])
    total = pixels.new_zeros(len(masks), *size)
    for k in (first, first + 1):
        part = pixels[:, k::stride]
        rows[:, : part.shape[1]] += part
    for k in (first, first + 1):
        part = rows[:, :, k::stride]
        total[:, :, : part.shape[2]] += part
    return total >= 2


def assign(
    targets: Sequence[Mapping[str, Tensor]],
    input_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    mask_strides: Sequence[int] = MASK_STRIDES,
    *,
    shared_cells: bool = False,
) -> list[LevelTargets]:
    """Targets of every level for a batch.

    Args:
        targets: for each image ``boxes`` [N, 4], ``labels`` [N] and ``masks`` [N, H, W] as they lie in the
            padded input (from its top left corner).
        input_size: (height, width) of the padded input, multiples of 32.
        num_grids: S of each level.
        scale_ranges: of each level, the sqrt of box area that it takes; both ends inclusive.
        mask_strides: of each level's mask logits.
        shared_cells: a cell in the centre regions of several objects learns the masks of all of them, not
            only of the last one, which it has the label of.
    """
    # The comparison with zero is made once: the masks are read many times.
    targets = [{**target, "masks": as_bytes(target["masks"]).view(torch.bool)} for target in targets]
    objects = [find_objects(target) for target in targets]
    sizes = {stride: (input_size[0] // stride, input_size[1] // stride) for stride in set(mask_strides)}
    reduced = [{k: reduce_masks(target["masks"], k, sizes[k]) for k in sizes} for target in targets]
    levels = []
    for side, (low, high), stride in zip(num_grids, scale_ranges, mask_strides, strict=True):
        labels, cells, masks, collisions = [], [], [], 0
        for image, found in enumerate(objects):
            cell, owner = owned_cells(found, input_size, side, low, high)
            label = torch.full((side * side,), BACKGROUND, device=cell.device)
            label[cell] = found.labels[owner]
            labels.append(label.reshape(side, side))
            if shared_cells:
                once = len(cell)
                cell, owner = wanted_cells(found, input_size, side, low, high)
                collisions += len(cell) - once
            cells.append(torch.stack([torch.full_like(cell, image), cell], dim=1))
            masks.append(reduced[image][stride][found.mask[owner]])
        levels.append(LevelTargets(torch.stack(labels), torch.cat(cells), torch.cat(masks), collisions))
    return levels


def owned_cells(
    found: Objects, input_size: tuple[int, int], side: int, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The cells of a level with a responsible object, int64 [K], and which one of ``found`` it is, [K].

    Args:
        found: an image's objects.
        input_size: (height, width) of the padded input.
        side: S.
        low: sqrt of the box's area from which the level takes objects, inclusive.
        high: up to which, inclusive.
    """
    inside, length = _of_size(found, input_size, low, high)
    owner = owners(found.centre[inside], found.half[inside], length, side)
    cell = owner.ne(BACKGROUND).nonzero().squeeze(1)
    return cell, inside[owner[cell]]


def wanted_cells(
    found: Objects, input_size: tuple[int, int], side: int, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """`owned_cells` where no object overwrites another: a cell comes once for each centre region it is in."""
    inside, length = _of_size(found, input_size, low, high)
    taken, cells = _regions(found.centre[inside], found.half[inside], length, side)
    return cells[taken], inside[taken.nonzero()[:, 0]]


def _of_size(found: Objects, input_size: tuple[int, int], low: float, high: float) -> tuple[Tensor, Tensor]:
    """The objects in a level's range, int64 [N], and (height, width) of the input as float32 [2]."""
    inside = ((found.side >= low) & (found.side <= high)).nonzero().squeeze(1)
    return inside, torch.tensor(input_size, dtype=torch.float32, device=found.centre.device)


def owners(
    centre: Tensor,
    half: Tensor,
    length: Tensor,
    side: int,
    *,
    image: Tensor | None = None,
    images: int = 1,
) -> Tensor:
    """The object responsible for each cell of a level: the last one of those whose centre region it is in.

    Args:
        centre: (y, x) of the objects' centres of mass, float32 [N, 2].
        half: half the (height, width) of their centre regions, [N, 2].
        length: (height, width) of the padded input, float32 [2], or of each object's, [N, 2].
        side: S.
        image: int64 [N], which image each object lies in, for several at a time.
        images: how many.

    Returns:
        int64 [images * S * S], the object's index or `BACKGROUND`.
    """
    owner = torch.full((images * side * side,), BACKGROUND, dtype=torch.int64, device=centre.device)
    inside, cells = _regions(centre, half, length, side)
    if image is not None:
        cells = cells + image[:, None, None] * side * side
    index = torch.arange(len(inside), device=owner.device)[:, None, None].expand_as(inside)[inside]
    # A later object overwrites an earlier one.
    return owner.scatter_reduce(0, cells[inside], index, "amax")


def _regions(centre: Tensor, half: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The centre regions of N objects: which of [N, 3, 3] places belong to them, and their cells, int64."""
    middle = cell_index(centre, length, side)
    first = cell_index(centre - half, length, side).clamp(min=0)
    last = cell_index(centre + half, length, side).clamp(max=side - 1)
    first, last = first.maximum(middle - 1), last.minimum(middle + 1)
    # At most 3 x 3 cells: all of them at once, [N, 3, 3].
    reach = torch.arange(3, device=centre.device)
    rows, columns = (first[:, k, None] + reach for k in (0, 1))
    inside = (rows <= last[:, 0, None])[:, :, None] & (columns <= last[:, 1, None])[:, None, :]
    return inside, rows[:, :, None] * side + columns[:, None, :]
