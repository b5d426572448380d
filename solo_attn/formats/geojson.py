"""Instances as GeoJSON polygons along the edges of their pixels."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._utils.checks import Prediction, as_bool, check_prediction
from .._utils.files import replacing
from .._utils.run_lengths import decode_window

Ring = list[tuple[int, int]]
"""Corners (x, y), the last one the first again."""

# Directions of an edge: right, down, left, up. The object is on the right side of the walk, as seen on the
# screen.
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def to_geojson(
    found: Prediction, class_names: Sequence[str], *, score_threshold: float = 0.0
) -> dict[str, Any]:
    """A FeatureCollection (RFC 7946) of one image's instances, ready for `json`.

    Coordinates are pixels of the image, not degrees: x to the right, y **down**, and pixel (row, column) is
    the square from (column, row) to (column + 1, row + 1). Outlines follow the edges of pixels exactly: the
    polygons' area is the number of pixels. Pixels that touch only at a corner are separate parts. An empty
    instance has the geometry null.

    Args:
        found: what the model returns for an image: ``boxes``, ``labels``, ``scores``, ``masks``, as bool or
            run lengths.
        class_names: the name of each label.
        score_threshold: scores from which instances are written, inclusive.

    Returns:
        Features whose geometry is a Polygon or MultiPolygon with holes, and whose properties are ``id``
        (place in ``found``, from 1), ``label`` (a class name) and ``score``; and for QuPath, which imports
        them as detections of that class, ``objectType``, ``classification`` and ``measurements``.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, or a label has no name.
    """
    check_prediction("to_geojson", found, len(class_names), rle=True)
    scores, labels = found["scores"].tolist(), found["labels"].tolist()
    masks = found["masks"]
    if isinstance(masks, Tensor):
        masks = as_bool(masks.detach().cpu()).numpy()
    features = [
        {
            "type": "Feature",
            "properties": _properties(k + 1, str(class_names[labels[k]]), scores[k], labels[k]),
            "geometry": _geometry(_outlines(masks[k])),
        }
        for k in range(len(masks))
        if scores[k] >= score_threshold
    ]
    return {"type": "FeatureCollection", "features": features}


def _properties(number: int, name: str, score: float, label: int) -> dict[str, Any]:
    """The last three are QuPath's (its GeoJSON export, version 0.4 and later)."""
    return {
        "id": number,
        "label": name,
        "score": score,
        "objectType": "detection",
        "classification": {"name": name, "color": list(class_colour(label))},
        "measurements": {"score": score},
    }


def class_colour(label: int) -> tuple[int, int, int]:
    """An RGB colour of a class, the same in all images: hues a golden section of the circle apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618033988749895 % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outlines(mask: Any) -> list[list[Ring]]:
    """`polygons` of pixels, or of run lengths without decoding the whole image."""
    if isinstance(mask, np.ndarray):
        return polygons(mask)
    window, top, left = decode_window(mask)
    return [[_moved(ring, left, top) for ring in part] for part in polygons(window)]


def write_geojson(
    path: str | Path, found: Prediction, class_names: Sequence[str], *, score_threshold: float = 0.0
) -> None:
    """Write `to_geojson` to a file, which is either left as it was or complete.

    Raises:
        TypeError, ValueError: see `to_geojson`.
        OSError: ``path`` cannot be written.
    """
    collection = to_geojson(found, class_names, score_threshold=score_threshold)
    with replacing(path, "write_geojson") as temporary:
        temporary.write_text(json.dumps(collection), encoding="utf-8")


def polygons(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Each 4-connected part of a bool mask [H, W] as its outline and the outlines of its holes.

    Rings are simple; the rings of a polygon touch only at corners. Outlines have a positive area in (x, y),
    counter-clockwise by the sign that RFC 7946 asks for, holes a negative one.
    """
    if not mask.any():
        return []
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    rings, owner = _trace(cut)
    width = cut.shape[1] + 1
    outlines: dict[int, list[Ring]] = {}
    holes: list[tuple[int, Ring]] = []
    for k, ring in enumerate(rings):
        corners = _corners(ring, width)
        if _area(corners) > 0:
            outlines[k] = [_moved(corners, left, top)]
        else:
            holes.append((k, _moved(corners, left, top)))
    for k, hole in holes:
        part = k
        while part not in outlines:  # further to the left, until the part ends
            part = _left_neighbour(rings[part], owner, cut)
        outlines[part].append(hole)
    return list(outlines.values())


def _trace(mask: NDArray[np.bool_]) -> tuple[list[list[int]], NDArray[np.int64]]:
    """The boundary as closed walks over vertices (index = y * (W + 1) + x), none of which touches itself.

    Second: for each vertex that an edge leaves upwards, the walk that this edge is part of.
    """
    around = np.pad(mask, 1)
    inside = around[1:-1, 1:-1]
    leaving = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.uint8)  # a bit for each direction
    leaving[:-1, :-1] |= (inside & ~around[:-2, 1:-1]).astype(np.uint8) << _RIGHT
    leaving[:-1, 1:] |= (inside & ~around[1:-1, 2:]).astype(np.uint8) << _DOWN
    leaving[1:, 1:] |= (inside & ~around[2:, 1:-1]).astype(np.uint8) << _LEFT
    leaving[1:, :-1] |= (inside & ~around[1:-1, :-2]).astype(np.uint8) << _UP
    step = (1, leaving.shape[1], -1, -leaving.shape[1])
    starts = np.flatnonzero(leaving & (1 << _RIGHT))  # every closed walk goes right somewhere
    edges = leaving.tobytes()
    left = bytearray(edges)  # those not walked yet
    twice = {int(v) for v in np.flatnonzero((leaving == 0b0101) | (leaving == 0b1010))}
    owner = np.full(leaving.size, -1, dtype=np.int64)
    rings: list[list[int]] = []

    def close(walk: list[int]) -> None:
        for vertex, following in zip(walk, walk[1:] + walk[:1], strict=True):
            if following == vertex + step[_UP]:
                owner[vertex] = len(rings)
        rings.append(walk)

    for start in map(int, starts):
        if not left[start] & 1 << _RIGHT:
            continue
        walk: list[int] = []
        place: dict[int, int] = {}  # of the vertices that are met twice
        vertex, direction = start, _RIGHT
        while left[vertex] & 1 << direction:
            left[vertex] &= ~(1 << direction)
            if vertex in twice:
                if vertex in place:  # the vertices since then are a separate ring
                    close(walk[place[vertex] :])
                    del walk[place[vertex] :]
                    place = {v: k for v, k in place.items() if k < len(walk)}
                place[vertex] = len(walk)
            walk.append(vertex)
            vertex += step[direction]
            # Turn around the corner of the same pixel, else straight on, else around the corner of the next.
            for turn in (1, 0, 3):
                if edges[vertex] & 1 << (direction + turn) % 4:
                    direction = (direction + turn) % 4
                    break
        close(walk)
    return rings, owner


def _left_neighbour(ring: list[int], owner: NDArray[np.int64], mask: NDArray[np.bool_]) -> int:
    """Of a hole: the walk at the left end of the row of pixels that bounds it at its leftmost edge."""
    width = mask.shape[1] + 1
    following = ring[1:] + ring[:1]
    down = [v for v, after in zip(ring, following, strict=True) if after == v + width]
    vertex = min(down, key=lambda v: v % width)
    row, column = vertex // width, vertex % width
    gaps = np.flatnonzero(~mask[row, :column])
    first = int(gaps[-1]) + 1 if len(gaps) else 0
    return int(owner[(row + 1) * width + first])


def _corners(ring: list[int], width: int) -> Ring:
    points = [(v % width, v // width) for v in ring]
    before, after = points[-1:] + points[:-1], points[1:] + points[:1]
    corners = [
        p
        for b, p, a in zip(before, points, after, strict=True)
        if (p[0] - b[0], p[1] - b[1]) != (a[0] - p[0], a[1] - p[1])
    ]
    return [*corners, corners[0]]


def _area(ring: Ring) -> int:
    """Twice the signed area."""
    return sum(x * y2 - x2 * y for (x, y), (x2, y2) in pairwise(ring))


def _moved(ring: Ring, x: int, y: int) -> Ring:
    return [(px + x, py + y) for px, py in ring]


def _geometry(parts: list[list[Ring]]) -> dict[str, Any] | None:
    coordinates = [[[list(point) for point in ring] for ring in part] for part in parts]
    if not coordinates:
        return None
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}
