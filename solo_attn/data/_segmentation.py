"""What is wrong with a COCO segmentation. pycocotools does not ask, and pays for it in C.

Seen with pycocotools 2.0.11: a NaN or a coordinate of 1e9 in a polygon ends the process (segmentation fault),
and runs that end before the image does give a mask whose rest is uninitialised memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_FAR = 10  # image sides; a polygon may leave the image a little, and one this far out is on another scale


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """What keeps a segmentation from being a mask of the image's ``size`` (height, width), or None."""
    if isinstance(segmentation, dict):
        return _run_length_fault(segmentation, size)
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


def _run_length_fault(encoded: dict[str, Any], size: tuple[int, int]) -> str | None:
    got, counts = encoded.get("size"), encoded.get("counts")
    if not isinstance(got, list) or got != list(size):
        return f"expected a run-length encoding of size {list(size)} as the image is, got size {got!r:.60}"
    if isinstance(counts, str):
        pixels = _compressed_pixels(counts)
    elif isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        pixels = sum(counts)
    else:
        pixels = None
    if pixels is None:
        return f"expected a run-length encoding to have runs as a list or a COCO string, got {counts!r:.60}"
    if pixels != size[0] * size[1]:
        return f"expected runs of {size[0] * size[1]} pixels in all as the image has, got {pixels}"
    return None


def _compressed_pixels(counts: str) -> int | None:
    """Pixels that the runs of a compressed encoding cover, or None where it is no such encoding.

    Each character holds 5 bits of a number, lowest first, and a bit 32 that says "more"; the top bit of the
    last one is the sign. From the fourth run on, the number is the difference to the run two before. Source:
    rleFrString in cocoapi's maskApi.c.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("utf-8"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:  # more bits than pycocotools' numbers have
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value = shift = 0
    return sum(runs) if runs and not shift else None
