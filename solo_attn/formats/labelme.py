"""labelme's JSON files, one an image, as COCO's format; shapes are filled as labelme fills them."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .._utils.readers import one_line
from .._utils.text import shown
from ..data.images import UNREADABLE
from ..data.pictures import open_picture
from ..data.segmentation import points_of
from ..data.validate import DatasetError, DatasetSummary
from .coco import Advance, Item, Record, annotation, convert_images, read_json

# How many points each may have; newer versions write all four corners of a rectangle.
_POINTS: dict[str, tuple[int, ...]] = {
    "polygon": (),
    "rectangle": (2, 4),
    "circle": (2,),
    "oriented_rectangle": (4,),
    "mask": (2,),
}


def convert_labelme(
    folder: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    advance: Advance | None = None,
) -> DatasetSummary:
    """Write ``out`` with the objects of every ``*.json`` in a folder and those below it.

    Shapes of one label and ``group_id`` are parts of one object. Masks are the whole shapes as they were
    drawn, even if others cover them. Polygons, rectangles (oriented ones too), circles and masks are areas;
    lines and points are not. Continues where a killed call with the same arguments stopped.

    Args:
        folder: of the JSON files; file names will be relative to it.
        out: the JSON of COCO's format, which is not taken for one of labelme's.
        classes: labels to take; the others are left out, whatever their shape. None takes all.
        advance: called with 1 after each image.

    Raises:
        DatasetError: files that are missing or not labelme's, shapes without an area, and images with an
            EXIF rotation; each with its name.
        ValueError: ``classes`` is empty or has a name twice.
    """
    folder, out = Path(folder), Path(out)
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"convert_labelme: expected classes to be different names, got {list(classes)}")
    items = find_files(folder, out)

    def read(item: Item, size: tuple[int, int]) -> list[Record]:
        return _annotations(item, size, classes)

    return convert_images(
        out,
        folder,
        items,
        read,
        settings={"layout": "labelme", "classes": None if classes is None else list(classes)},
        categories=None if classes is None else {name: k for k, name in enumerate(classes, start=1)},
        advance=advance,
    )


def find_files(folder: Path, out: Path) -> list[Item]:
    """The JSON files of a folder and those below it but for ``out``, each with its image.

    Raises:
        DatasetError: there is none, one is not labelme's, or two are of one image.
    """
    items: dict[str, Item] = {}
    for path in sorted(p for p in folder.rglob("*.json") if not p.name.startswith(".")):
        if path.resolve() == out.resolve():
            continue
        content = read_json(path)
        if not isinstance(content.get("imagePath"), str) or not isinstance(content.get("shapes"), list):
            raise DatasetError(f"{path}: expected labelme's imagePath and shapes, got {shown(list(content))}")
        image = path.parent / PureWindowsPath(content["imagePath"]).as_posix()  # labelme on Windows writes \
        if not image.is_file():
            raise DatasetError(f"{path}: expected its image in {image}, found none")
        name = Path(os.path.relpath(image, folder)).as_posix()
        if name in items:
            raise DatasetError(f"{path}: expected one file for {image}, got {items[name].annotation} too")
        items[name] = Item(name, image, path)
    if not items:
        raise DatasetError(f"{folder}: expected labelme's JSON files, found none")
    return list(items.values())


def _annotations(item: Item, size: tuple[int, int], classes: Sequence[str] | None) -> list[Record]:
    content = read_json(item.annotation)
    got = (content.get("imageHeight"), content.get("imageWidth"))
    if None not in got and got != size:
        raise DatasetError(
            f"{item.annotation}: expected imageHeight and imageWidth {size} as the image has, got {got}"
        )
    objects: dict[Any, NDArray[np.bool_]] = {}
    for position, shape in enumerate(content["shapes"]):
        where = f"{item.annotation}: shapes[{position}]"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise DatasetError(f"{where}: expected a shape with a label, got {shown(shape)}")
        if classes is not None and shape["label"] not in classes:
            continue
        group = shape.get("group_id")
        if group is not None and not isinstance(group, (int, str)):
            raise DatasetError(f"{where}: expected group_id to be a number or null, got {shown(group)}")
        key = (shape["label"], f"alone {position}" if group is None else group)
        mask = shape_mask(where, shape, size)
        objects[key] = objects[key] | mask if key in objects else mask
    for (label, _), mask in objects.items():
        if not mask.any():
            raise DatasetError(
                f"{item.annotation}: expected {label!r} to have a pixel in the image, got none"
            )
    return [annotation(label, mask) for (label, _), mask in objects.items()]


def shape_mask(where: str, shape: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of one of labelme's shapes, bool [H, W].

    Args:
        where: how an error begins.
        shape: as it stands in the file.
        size: (height, width) of the image.

    Raises:
        DatasetError: a shape without an area, too few points, or a mask that cannot be read.
    """
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in _POINTS:
        raise DatasetError(
            f"{where} ({shape['label']!r}): expected a shape_type with an area ({', '.join(_POINTS)}), got "
            f"{shown(kind)}; other classes can be left out"
        )
    points, counts = points_of(shape.get("points"), size), _POINTS[kind]
    if points is None or (len(points) not in counts if counts else len(points) < 3):
        wanted = " or ".join(map(str, counts)) if counts else "at least 3"
        raise DatasetError(
            f"{where}: expected {wanted} points [x, y] of a {kind}, got {shown(shape.get('points'))}"
        )
    if kind == "mask":
        return _stored_mask(where, shape.get("mask"), points, size)
    canvas = Image.new("L", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    if kind == "rectangle":
        xs, ys = (sorted(line) for line in zip(*points, strict=True))
        if len(points) == 4 and set(points) != {(x, y) for x in (xs[0], xs[-1]) for y in (ys[0], ys[-1])}:
            raise DatasetError(
                f"{where}: expected the 4 points of a rectangle to be its corners along the image's sides, "
                f"got {shown(points)}; one that is turned is an oriented_rectangle"
            )
        pen.rectangle((xs[0], ys[0], xs[-1], ys[-1]), fill=1, outline=1)
    elif kind == "circle":
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    else:
        pen.polygon(points, fill=1, outline=1)
    return np.asarray(canvas, dtype=bool)


def _stored_mask(
    where: str, encoded: Any, points: Sequence[tuple[float, float]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """A PNG as text, which is placed at the first point."""
    try:
        with open_picture(io.BytesIO(base64.b64decode(encoded))) as image:
            part = np.asarray(image).astype(bool)
    except UNREADABLE as error:
        raise DatasetError(f"{where}: expected its mask to be a PNG in base64: {one_line(error)}") from error
    (left, top), (right, bottom) = ((int(x), int(y)) for x, y in points[:2])
    if part.shape != (bottom - top + 1, right - left + 1):
        raise DatasetError(
            f"{where}: expected a mask of {right - left + 1} x {bottom - top + 1} pixels between its points, "
            f"got {part.shape[::-1]}"
        )
    if min(left, top) < 0 or right >= size[1] or bottom >= size[0]:
        raise DatasetError(f"{where}: expected a mask within the image, got points {points[:2]}")
    mask = np.zeros(size, dtype=bool)
    mask[top : bottom + 1, left : right + 1] = part
    return mask
