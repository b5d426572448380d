"""Which cells are responsible for which object, and what they should draw (spec 2, "Targets")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
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
    """

    labels: Tensor
    cells: Tensor
    masks: Tensor


class Objects(NamedTuple):
    """What the assignment needs to know of an image's N objects; masks without a pixel are left out."""

    labels: Tensor  # int64 [N]
    masks: Tensor  # [N, H, W]
    side: Tensor  # sqrt of the box's area, [N]
    centre: Tensor  # (y, x) of the mask's centre of mass, in pixel indices, [N, 2]
    half: Tensor  # half the (height, width) of the centre region, [N, 2]


def describe(target: Mapping[str, Tensor]) -> Objects:
    """Sizes and centres of an image's objects, from its boxes (xyxy, x2 = x1 + w), labels and masks."""
    masks = target["masks"].ne(0)
    valid = masks.flatten(1).any(1)
    masks, boxes, labels = masks[valid], target["boxes"][valid].float(), target["labels"][valid]
    extent = (boxes[:, 2:] - boxes[:, :2]).flip(1)  # (height, width)
    sums = []
    for axis in (1, 2):  # y, then x
        weights = masks.sum(3 - axis).double()
        index = torch.arange(masks.shape[axis], device=masks.device, dtype=torch.float64)
        sums.append((weights * index).sum(1) / weights.sum(1))
    centre = torch.stack(sums, dim=1).float()
    return Objects(labels, masks, extent.prod(1).sqrt(), centre, 0.5 * CENTRE_FRACTION * extent)


def cell_index(position: Tensor, length: Tensor, side: int) -> Tensor:
    """cell(v, L, S) = trunc((v / L) / (1 / S)), in float32."""
    return ((position / length) / (1 / side)).trunc().long()


def reduce_masks(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Full-size masks [N, H, W] to bool [N, *size], 1 / stride of the padded input's size.

    Set iff at least 2 of the 4 centre pixels of the stride x stride block are: what cv2's bilinear
    resize makes of 0/1 bytes. Pixels of the padding are 0.
    """
    first = stride // 2 - 1
    total = masks.new_zeros(len(masks), *size, dtype=torch.uint8)
    for row in (first, first + 1):
        for column in (first, first + 1):
            part = masks[:, row::stride, column::stride]
            total += F.pad(part.to(torch.uint8), (0, size[1] - part.shape[2], 0, size[0] - part.shape[1]))
    return total >= 2


def assign(
    targets: Sequence[Mapping[str, Tensor]],
    input_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
) -> list[LevelTargets]:
    """Targets of every level for a batch.

    Args:
        targets: for each image ``boxes`` [N, 4], ``labels`` [N] and ``masks`` [N, H, W] as they lie in the
            padded input (from its top left corner).
        input_size: (height, width) of the padded input, multiples of 32.
        num_grids: S of each level.
        scale_ranges: of each level, the sqrt of box area that it takes; both ends inclusive.
    """
    objects = [describe(target) for target in targets]
    levels = []
    for side, (low, high), stride in zip(num_grids, scale_ranges, MASK_STRIDES, strict=True):
        mask_size = (input_size[0] // stride, input_size[1] // stride)
        labels, cells, masks = [], [], []
        for image, found in enumerate(objects):
            level = Objects(*(x[(found.side >= low) & (found.side <= high)] for x in found))
            length = torch.tensor(input_size, dtype=torch.float32, device=level.centre.device)
            owner = owners(level.centre, level.half, length, side)
            cell = owner.ne(BACKGROUND).nonzero().squeeze(1)
            label = torch.full_like(owner, BACKGROUND)
            label[cell] = level.labels[owner[cell]]
            labels.append(label.reshape(side, side))
            cells.append(torch.stack([torch.full_like(cell, image), cell], dim=1))
            masks.append(reduce_masks(level.masks, stride, mask_size)[owner[cell]])
        levels.append(LevelTargets(torch.stack(labels), torch.cat(cells), torch.cat(masks)))
    return levels


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
    middle = cell_index(centre, length, side)
    first = cell_index(centre - half, length, side).clamp(min=0)
    last = cell_index(centre + half, length, side).clamp(max=side - 1)
    first, last = first.maximum(middle - 1), last.minimum(middle + 1)
    # At most 3 x 3 cells: all of them at once, [N, 3, 3].
    reach = torch.arange(3, device=owner.device)
    rows, columns = (first[:, k, None] + reach for k in (0, 1))
    inside = (rows <= last[:, 0, None])[:, :, None] & (columns <= last[:, 1, None])[:, None, :]
    cells = rows[:, :, None] * side + columns[:, None, :]
    if image is not None:
        cells = cells + image[:, None, None] * side * side
    index = torch.arange(len(inside), device=owner.device)[:, None, None].expand_as(inside)[inside]
    # A later object overwrites an earlier one.
    return owner.scatter_reduce(0, cells[inside], index, "amax")
