"""YOLO's segmentation labels, one text file an image, as COCO's format; read by the rules of Ultralytics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .._utils.readers import one_line, read_text
from .._utils.text import shown
from ..data.images import IMAGE_SUFFIXES, image_files
from ..data.validate import DatasetError, DatasetSummary
from .coco import Advance, Item, Record, annotation, convert_images

BEYOND = 0.01  # of the image's side, that a point may lie outside: Ultralytics' tolerance


def convert_yolo(
    data: str | Path, out: str | Path, *, split: str = "train", advance: Advance | None = None
) -> DatasetSummary:
    """Write ``out`` with the objects of one split of a dataset in Ultralytics' layout.

    A row ``class x1 y1 x2 y2 ...`` of ``labels/a.txt`` is a polygon, relative to the sides of
    ``images/a.jpg``, and an object; a row that is there twice is one. An image without a file has no object.
    Polygons are filled as pycocotools fills COCO's. Continues where a killed call with the same arguments
    stopped.

    Source: https://docs.ultralytics.com/datasets/segment/

    Args:
        data: the dataset's YAML file: ``names``, and for each split a folder, a list of folders, or a text
            file of image paths, relative to ``path``, which is relative to the YAML file.
        out: the JSON of COCO's format; file names are relative to the YAML file's folder.
        split: "train", "val", "test", or another name in the file.
        advance: called with 1 after each image.

    Raises:
        DatasetError: files that are missing or not as described, boxes in place of polygons, and polygons
            without a pixel; each with its name.
    """
    data, out = Path(data), Path(out)
    names, images = read_yolo(data, split)
    items = [Item(_relative(image, data.parent), image, label_file(image)) for image in images]
    if not any(item.annotation.exists() for item in items):
        raise DatasetError(f"{data}: expected labels such as {items[0].annotation}, found none")

    def read(item: Item, size: tuple[int, int]) -> list[Record]:
        return _annotations(item.annotation, size, names)

    return convert_images(
        out,
        data.parent,
        items,
        read,
        settings={"layout": "yolo", "names": names},
        categories={name: k for k, name in enumerate(names, start=1)},
        advance=advance,
    )


def read_yolo(data: Path, split: str) -> tuple[list[str], list[Path]]:
    """The class names of a dataset's YAML file, and the images of a split.

    Raises:
        DatasetError: the file is none, or there are no images.
    """
    try:
        content = yaml.safe_load(read_text(data, DatasetError))
    except DatasetError:
        raise
    except Exception as error:  # dates and very long numbers raise Python's own errors, deep brackets too
        raise DatasetError(f"{data}: expected YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not content.get("names"):
        raise DatasetError(f"{data}: expected YOLO's names and {split}, got {shown(content)}")
    names = content["names"]
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        names = list(names.values())
    if not isinstance(names, list) or len({*map(str, names)}) < len(names):
        raise DatasetError(f"{data}: expected names to be different, numbered from 0, got {shown(names)}")
    places = content.get(split)
    places = places if isinstance(places, list) else [places]
    if not all(isinstance(place, str) for place in places):
        got = shown(content.get(split))
        raise DatasetError(f"{data}: expected {split} to be a folder of images, got {got}")
    root = data.parent / str(content.get("path") or "")
    images = [image for place in places for image in _images(data, root, place)]
    if not images:
        raise DatasetError(f"{data}: expected images in {split}, got none")
    return [str(name) for name in names], list(dict.fromkeys(images))


def _images(data: Path, root: Path, place: str) -> list[Path]:
    path = root / place
    if not path.exists() and place.startswith("../"):  # Roboflow writes it so
        path = root / place[3:]
    if path.is_dir():
        return image_files(path, below=True)
    if path.suffix != ".txt" or not path.is_file():
        raise DatasetError(f"{data}: expected a folder or a text file of images, got {path}, which is none")
    lines = [line.strip() for line in read_text(path, DatasetError).splitlines() if line.strip()]
    # Ultralytics takes "./" for the text file's folder, and CVAT writes paths relative to the dataset's.
    found = [path.parent / line if line.startswith("./") else root / line for line in lines]
    return [image for image in found if image.suffix.lower() in IMAGE_SUFFIXES]


def label_file(image: Path) -> Path:
    """Of an image: the last folder "images" in its path is "labels" there."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _relative(image: Path, folder: Path) -> str:
    try:
        return image.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:  # elsewhere on the disk
        return image.resolve().as_posix()


def _annotations(file: Path, size: tuple[int, int], names: Sequence[str]) -> list[Record]:
    if not file.exists():
        return []
    found = []
    rows = dict.fromkeys(tuple(line.split()) for line in read_text(file, DatasetError).splitlines())
    for number, row in enumerate((row for row in rows if row), start=1):
        where = f"{file}: row {number}"
        label, points = _row(where, row, len(names))
        mask = _filled(points, size)
        if not mask.any():
            raise DatasetError(f"{where}: expected a polygon with a pixel in the image, got {shown(row)}")
        found.append(annotation(names[label], mask))
    return found


def _row(where: str, row: Sequence[str], classes: int) -> tuple[int, NDArray[np.float64]]:
    try:
        values = [float(word) for word in row]
    except ValueError:
        values = []
    if len(values) == 5:
        raise DatasetError(f"{where}: expected class x1 y1 x2 y2 x3 y3 ..., got a box, which has no mask")
    if len(values) < 7 or len(values) % 2 == 0 or not np.isfinite(values).all():
        raise DatasetError(f"{where}: expected class x1 y1 x2 y2 x3 y3 ..., got {shown(' '.join(row))}")
    if values[0] not in range(classes):
        raise DatasetError(f"{where}: expected a class of 0..{classes - 1}, got {row[0]}")
    points = np.array(values[1:]).reshape(-1, 2)
    if points.min() < -BEYOND or points.max() > 1 + BEYOND:
        raise DatasetError(
            f"{where}: expected points relative to the image's sides, in 0..1, got "
            f"{points.min():g}..{points.max():g}"
        )
    return int(values[0]), points.clip(0, 1)


def _filled(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size
    corners = (points * (width, height)).flatten().tolist()
    runs: Any = coco_mask.frPyObjects([corners], height, width)
    return np.asarray(coco_mask.decode(runs)[:, :, 0]).astype(bool)
