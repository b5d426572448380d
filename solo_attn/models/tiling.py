"""Images predicted in overlapping tiles, so that objects in large images are as large as in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._utils.bits import occupied, span
from .._utils.limits import refuse_pixels
from .._utils.run_lengths import encode_window
from ..ops import mask_iou

SAME_IOU = 0.5  # from this IoU on the masks of two tiles are one object
TILES_AT_ONCE = 4

Instances = dict[str, Any]


Crop = Callable[[int, int, int, int], Tensor]
"""(top, left, bottom, right) to that part of a picture, float [3, height, width], values in 0..1."""


def cropping(image: Tensor) -> Crop:
    """`Crop` of an image in memory."""
    return lambda top, left, bottom, right: image[:, top:bottom, left:right]


@dataclass
class Piece:
    """An object as seen in a tile.

    Attributes:
        top, left: of the mask in the picture.
        size: (height, width) of the mask, no larger than the object.
        bits: the mask, eight pixels a byte: pieces of all tiles are held until the last one is seen.
        label: its class.
        score: of the tile's prediction.
        cut: whether it touches a border of the tile that lies inside the picture.
        area: pixels of the mask.
    """

    top: int
    left: int
    size: tuple[int, int]
    bits: NDArray[np.uint8]
    label: int
    score: float
    cut: bool
    area: int

    def reaches(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether its box has pixels in a part of the picture."""
        height, width = self.size
        return max(top, self.top) < min(bottom, self.top + height) and max(left, self.left) < min(
            right, self.left + width
        )

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Bool [h, w]."""
        height, width = self.size
        return np.unpackbits(self.bits, count=height * width).reshape(self.size).view(np.bool_)

    def window(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Its pixels in a part of the picture: bool [bottom - top, right - left]."""
        result = torch.zeros(bottom - top, right - left, dtype=torch.bool)
        first, last = max(top, self.top), min(bottom, self.top + self.size[0])
        begin, end = max(left, self.left), min(right, self.left + self.size[1])
        if first < last and begin < end:
            part = self.mask[first - self.top : last - self.top, begin - self.left : end - self.left]
            result[first - top : last - top, begin - left : end - left] = torch.from_numpy(part)
        return result


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: evenly spread, ``overlap`` or more of each shared with the next."""
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [round(k * (length - tile) / steps) for k in range(steps + 1)]


def find_pieces(
    predict: Callable[[list[Tensor]], Sequence[Instances]],
    size: tuple[int, int],
    crop: Crop,
    tile: int,
    overlap: int,
    fill: Sequence[float],
) -> list[Piece]:
    """The objects of an image that is read tile by tile; those seen in several tiles are merged.

    An object that a tile cuts is left to the next tile if it is smaller than the overlap, since that one
    contains the whole object. Of the masks of one object the best one that no border cuts is kept; if all are
    cut, their union is.

    Args:
        predict: from images [3, tile, tile] to boxes, labels, scores and bool masks of their size.
        size: (height, width) of the picture.
        crop: reads a part of it.
        tile: side in pixels; a smaller picture is padded to it.
        overlap: pixels, less than ``tile``.
        fill: the three values that it is padded with.
    """
    height, width = size
    places = [(y, x) for y in tile_starts(height, tile, overlap) for x in tile_starts(width, tile, overlap)]
    seen: list[tuple[tuple[int, int, int, int], list[int]]] = []  # a tile's extent, and its pieces
    pieces: list[Piece] = []
    same: list[list[int]] = []  # of each piece, those of other tiles that are the same object
    for first in range(0, len(places), TILES_AT_ONCE):
        some = places[first : first + TILES_AT_ONCE]
        crops = [
            _padded(crop(y, x, min(y + tile, height), min(x + tile, width)), tile, fill) for y, x in some
        ]
        for (top, left), found in zip(some, predict(crops), strict=True):
            extent = (top, left, min(top + tile, height), min(left + tile, width))
            new = _pieces(found, extent, size, overlap)
            numbers = list(range(len(pieces), len(pieces) + len(new)))
            pieces += new
            same += [[] for _ in new]
            # Tiles come row by row: pieces that end above this one cannot touch later ones.
            seen = [(other, members) for other, members in seen if other[2] > top]
            for other, members in seen:
                for i, j in _matches(pieces, (extent, numbers), (other, members)):
                    same[i].append(j)
                    same[j].append(i)
            seen.append((extent, numbers))
    return sorted(map(_united, _groups(pieces, same)), key=lambda piece: -piece.score)


def _padded(crop: Tensor, tile: int, fill: Sequence[float]) -> Tensor:
    height, width = crop.shape[1:]
    if (height, width) == (tile, tile):
        return crop
    result = crop.new_tensor(fill)[:, None, None].expand(-1, tile, tile).clone()
    result[:, :height, :width] = crop
    return result


def _pieces(
    found: Instances, extent: tuple[int, int, int, int], size: tuple[int, int], overlap: int
) -> list[Piece]:
    top, left, bottom, right = extent
    masks = found["masks"][:, : bottom - top, : right - left].cpu()
    rows, columns = occupied(masks)
    sides = torch.stack([*span(rows), *span(columns)], dim=1)
    pieces = []
    for k in rows.any(1).nonzero().flatten().tolist():
        y0, y1, x0, x1 = sides[k].tolist()
        cut = (
            (y0 == 0 and top > 0)
            or (x0 == 0 and left > 0)
            or (y1 == bottom - top and bottom < size[0])
            or (x1 == right - left and right < size[1])
        )
        if cut and max(y1 - y0, x1 - x0) < overlap:
            continue
        label, score = int(found["labels"][k]), float(found["scores"][k])
        inside = masks[k, y0:y1, x0:x1].numpy()
        bits, area = np.packbits(inside), int(np.count_nonzero(inside))
        pieces.append(Piece(top + y0, left + x0, (y1 - y0, x1 - x0), bits, label, score, cut, area))
    return pieces


def _matches(
    pieces: list[Piece],
    mine: tuple[tuple[int, int, int, int], list[int]],
    other: tuple[tuple[int, int, int, int], list[int]],
) -> list[tuple[int, int]]:
    """Pairs of two tiles' pieces that show one object.

    A cut piece is compared only in the area that both tiles contain. Two whole pieces are compared
    completely; otherwise the rim of an object that reaches into the other tile could match the object that it
    touches there.
    """
    top, left = max(mine[0][0], other[0][0]), max(mine[0][1], other[0][1])
    bottom, right = min(mine[0][2], other[0][2]), min(mine[0][3], other[0][3])
    if top >= bottom or left >= right:
        return []
    stacks, numbers = [], []
    for _, members in (mine, other):
        near = (k for k in members if pieces[k].reaches(top, left, bottom, right))
        there = {k: window for k in near if (window := pieces[k].window(top, left, bottom, right)).any()}
        if not there:
            return []
        stacks.append(torch.stack(list(there.values())))
        numbers.append(list(there))
    seen = [stack.flatten(1).sum(1).double() for stack in stacks]
    whole = [torch.tensor([pieces[k].area for k in members]).double() for members in numbers]
    iou = mask_iou(*stacks).double()
    common = iou * (seen[0][:, None] + seen[1][None, :]) / (1 + iou)
    cut = [torch.tensor([pieces[k].cut for k in members]) for members in numbers]
    of_wholes = common / (whole[0][:, None] + whole[1][None, :] - common)
    iou = torch.where(cut[0][:, None] | cut[1][None, :], iou, of_wholes)
    pairs = ((numbers[0][i], numbers[1][j]) for i, j in (iou >= SAME_IOU).nonzero().tolist())
    return [(i, j) for i, j in pairs if pieces[i].label == pieces[j].label]


def _groups(pieces: list[Piece], same: list[list[int]]) -> list[list[Piece]]:
    """Pieces by object: the best one with all that match it, and where a cut one continues, tile by tile."""
    groups, taken = [], [False] * len(pieces)
    for first in sorted(range(len(pieces)), key=lambda k: -pieces[k].score):
        if taken[first]:
            continue
        group, ends = [first], [first]
        taken[first] = True
        while ends:
            end = ends.pop()
            for k in same[end]:
                if not taken[k]:
                    taken[k] = True
                    group.append(k)
                    if pieces[end].cut and pieces[k].cut:
                        ends.append(k)
        groups.append([pieces[k] for k in group])
    return groups


def _united(group: list[Piece]) -> Piece:
    best = max(group, key=lambda piece: (not piece.cut, piece.score))
    if not best.cut or len(group) == 1:
        return best
    top, left = min(p.top for p in group), min(p.left for p in group)
    bottom = max(p.top + p.size[0] for p in group)
    right = max(p.left + p.size[1] for p in group)
    mask = torch.zeros(bottom - top, right - left, dtype=torch.bool)
    for piece in group:
        mask |= piece.window(top, left, bottom, right)
    bits, size = np.packbits(mask.numpy()), (bottom - top, right - left)
    return Piece(top, left, size, bits, best.label, best.score, True, int(mask.sum()))


def assemble(pieces: Sequence[Piece], size: tuple[int, int], rle: bool) -> Instances:
    """Pieces as the model returns instances, their masks bool [N, height, width] or COCO run lengths."""
    height, width = size
    boxes = torch.zeros(len(pieces), 4)
    for box, piece in zip(boxes, pieces, strict=True):
        rows, columns = piece.size
        box[:] = torch.tensor([piece.left, piece.top, piece.left + columns, piece.top + rows])
    masks: Any
    if rle:
        masks = [encode_window(piece.mask, piece.top, piece.left, size) for piece in pieces]
    else:
        refuse_pixels("predict", len(pieces), size)
        windows = [piece.window(0, 0, height, width) for piece in pieces]
        masks = torch.stack(windows) if windows else torch.zeros(0, height, width, dtype=torch.bool)
    return {
        "boxes": boxes,
        "labels": torch.tensor([piece.label for piece in pieces], dtype=torch.int64),
        "scores": torch.tensor([piece.score for piece in pieces], dtype=torch.float32),
        "masks": masks,
    }
