"""What is wrong with a COCO segmentation. pycocotools does not check, and fails in C.

Seen with pycocotools 2.0.11: a NaN or a coordinate of 1e9 in a polygon ends the process (segmentation fault),
runs that end before the image does give a mask whose rest is uninitialised memory, and an intersection with
them that never ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._utils.limits import PREFIX, limits
from .._utils.run_lengths import run_lengths
from .._utils.text import shown

FAR = 10  # image sides; a polygon may exceed the image a little, and one this far out has another scale
_NUMBERS = {int, float}


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Why a segmentation is not a mask of the image's ``size`` (height, width), or None."""
    if isinstance(segmentation, dict):
        return run_length_fault(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return f"expected segmentation to be polygons or a run-length encoding, got {shown(segmentation)}"
    points, outline = 0, 0.0
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return f"expected polygons of at least 3 points, [x1, y1, x2, y2, ...], got {shown(polygon)}"
        # Before NumPy reads them: it would read text as numbers, and lists as rows.
        places = _places(polygon, size) if set(map(type, polygon)) <= _NUMBERS else None
        if places is None:  # NaN included
            return f"expected polygons of finite numbers in pixels of the image, got {shown(polygon)}"
        points += len(places)
        outline += float(np.abs(places - np.roll(places, 1, axis=0)).max(1).sum())
    # pycocotools takes 120 bytes for each pixel of the outline, and does not check that it got them.
    for name, what, got in (("polygon_points", "points", points), ("polygon_outline", "pixels", outline)):
        if got > (most := getattr(limits, name)):
            of = "" if what == "points" else " of outline"
            return f"expected polygons of at most {most} {what}{of} ({PREFIX}{name.upper()}), got {got:.0f}"
    return None


def _places(polygon: list[Any], size: tuple[int, int]) -> NDArray[np.float64] | None:
    """[N, 2], or None where one is not finite or far outside of the image."""
    try:
        places = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        return None
    return places if bool((np.abs(places) <= FAR * max(size)).all()) else None


def points_of(found: Any, size: tuple[int, int]) -> list[tuple[float, float]] | None:
    """Points [[x, y], ...] as other formats have them; None where no polygon may have them."""
    if not isinstance(found, list) or not all(isinstance(p, list) and len(p) == 2 for p in found):
        return None
    flat = [value for point in found for value in point]
    if not set(map(type, flat)) <= _NUMBERS or len(found) > limits.polygon_points:
        return None
    return None if _places(flat, size) is None else [(float(x), float(y)) for x, y in found]


def run_length_fault(encoded: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """Why a run-length encoding is not a mask of the image's ``size`` (height, width), or None."""
    got, counts = encoded.get("size"), encoded.get("counts")
    if (
        not isinstance(got, (list, tuple, np.ndarray))
        or not all(map(_is_whole, got))
        or list(got) != list(size)
    ):
        return f"expected a run-length encoding of size {list(size)} as the image is, got size {shown(got)}"
    pixels = run_pixels(counts)
    if pixels is None:
        return f"expected a run-length encoding to have runs as a list or a COCO string, got {shown(counts)}"
    if pixels != size[0] * size[1]:
        return f"expected runs of {size[0] * size[1]} pixels in all as the image has, got {pixels}"
    return None


def run_pixels(counts: Any) -> int | None:
    """Pixels that a run-length encoding's ``counts`` cover, or None where they are no run lengths."""
    if isinstance(counts, (str, bytes)):
        runs = run_lengths(counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts)
        return None if runs is None else int(runs.sum())
    if isinstance(counts, list) and all(_is_whole(n) and n >= 0 for n in counts):
        return int(sum(counts))
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
