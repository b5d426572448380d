"""What is wrong with a COCO segmentation. pycocotools does not ask, and pays for it in C.

Seen with pycocotools 2.0.11: a NaN or a coordinate of 1e9 in a polygon ends the process (segmentation fault),
runs that end before the image does give a mask whose rest is uninitialised memory, and an intersection with
them that never ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHARACTERS = bytes(range(48, 112))  # of a compressed encoding: 6 bits each
_FAR = 10  # image sides; a polygon may leave the image a little, and one this far out is on another scale


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """What keeps a segmentation from being a mask of the image's ``size`` (height, width), or None."""
    if isinstance(segmentation, dict):
        return run_length_fault(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return f"expected segmentation to be polygons or a run-length encoding, got {segmentation!r:.60}"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return f"expected polygons of at least 3 points, [x1, y1, x2, y2, ...], got {polygon!r:.60}"
        try:
            inside = bool((np.abs(np.asarray(polygon, dtype=np.float64)) <= _FAR * max(size)).all())
        except (TypeError, ValueError):
            inside = False
        if not inside:  # NaN included
            return f"expected polygons of finite numbers in pixels of the image, got {polygon!r:.60}"
    return None


def run_length_fault(encoded: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """What keeps a run-length encoding from being a mask of the image's ``size`` (height, width), or None."""
    got, counts = encoded.get("size"), encoded.get("counts")
    if not isinstance(got, (list, tuple, np.ndarray)) or list(got) != list(size):
        return f"expected a run-length encoding of size {list(size)} as the image is, got size {got!r:.60}"
    pixels = run_pixels(counts)
    if pixels is None:
        return f"expected a run-length encoding to have runs as a list or a COCO string, got {counts!r:.60}"
    if pixels != size[0] * size[1]:
        return f"expected runs of {size[0] * size[1]} pixels in all as the image has, got {pixels}"
    return None


def run_pixels(counts: Any) -> int | None:
    """Pixels that a run-length encoding's ``counts`` cover, or None where they are no run lengths."""
    if isinstance(counts, (str, bytes)):
        runs = run_lengths(counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts)
        return None if runs is None else int(runs.sum())
    whole = (int, np.integer)
    if isinstance(counts, list) and all(isinstance(n, whole) and n >= 0 for n in counts):
        return int(sum(counts))
    return None


def run_lengths(counts: bytes) -> NDArray[np.int64] | None:
    """The runs of COCO's compressed encoding, or None where it is no such encoding.

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
