"""COCO's compressed run lengths of small objects in a large image, without decoding the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .text import shown

_CHARACTERS = bytes(range(48, 112))  # of a compressed encoding: 6 bits each


def encode_window(mask: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask [h, w] that lies somewhere in a picture; needs pycocotools.

    What pycocotools' ``encode`` makes of the whole picture, without that picture.
    """
    from pycocotools.mask import frPyObjects

    height, width = size
    edges = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))))  # of each column
    column, first = np.nonzero(edges == 1)
    _, last = np.nonzero(edges == -1)
    begin = (left + column) * height + top + first
    end = begin + (last - first)
    apart = np.ones(len(begin), dtype=bool)  # else a column's last pixel is followed by the next one's first
    apart[1:] = begin[1:] != end[:-1]
    begin = begin[apart]
    end = np.append(end[:-1][apart[1:]], end[-1:])
    bounds = np.stack([begin, end], axis=1).flatten()
    counts = np.diff(bounds, prepend=0, append=height * width)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]
    return dict(frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width))


def decode_window(rle: Mapping[str, Any]) -> tuple[NDArray[np.bool_], int, int]:
    """The part of the picture that holds a mask's pixels, bool [h, w], and its top and left.

    What pycocotools' ``decode`` makes, cut to the object's box, without the whole picture. Of an empty mask
    the part is [0, 0].

    Args:
        rle: {"size": [H, W], "counts": bytes or str}.
    """
    height = int(rle["size"][0])
    text = rle["counts"]
    runs = run_lengths(text.encode() if isinstance(text, str) else text)
    if runs is None:
        raise ValueError(f"expected COCO's compressed run lengths, got {shown(text)}")
    bounds = np.cumsum(runs)
    begin, end = bounds[0:-1:2], bounds[1::2]
    solid = begin < end
    begin, end = begin[solid], end[solid]
    if not len(begin):
        return np.zeros((0, 0), dtype=np.bool_), 0, 0
    left, right = int(begin[0]) // height, int(end[-1] - 1) // height + 1
    columns = np.zeros((right - left) * height + 1, dtype=np.int8)
    columns[begin - left * height] = 1
    columns[end - left * height] -= 1  # a run that ends where the next one begins, too
    inside = np.cumsum(columns[:-1], dtype=np.int8).view(np.bool_).reshape(right - left, height)
    rows = inside.any(0).nonzero()[0]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return np.ascontiguousarray(inside[:, top:bottom].T), top, left


def run_lengths(counts: bytes) -> NDArray[np.int64] | None:
    """The runs of COCO's compressed encoding, or None if it is not one.

    Each character holds 5 bits of a number, lowest first, and a bit 32 that says "more"; the top bit of the
    last one is the sign. From the fourth run on, the number is the difference to the run two before. Source:
    rleFrString in cocoapi's maskApi.c.
    """
    if not counts or counts.translate(None, _CHARACTERS) or (counts[-1] - 48) & 32:
        return None
    bits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    final = np.flatnonzero(bits < 32)  # the last character of each number
    length = np.diff(final, prepend=-1)
    if length.max() > 7:  # more bits than pycocotools' numbers have
        return None
    first = final - length + 1
    place = np.arange(len(bits)) - first.repeat(length)
    numbers = np.add.reduceat((bits & 31) << (5 * place), first)
    numbers -= (bits[final] & 16) << (5 * length - 4)
    for parity in (1, 2):
        numbers[parity::2] = numbers[parity::2].cumsum()
    return None if numbers.min() < 0 else numbers
