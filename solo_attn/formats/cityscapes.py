"""Cityscapes' own layout (cityscapes-dataset.com) as COCO's format.

Masks are the visible pixels, as in Cityscapes' evaluation: ``*_instanceIds.png`` if it exists, else the
polygons, drawn as its scripts draw them, each over the previous ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .._utils.text import shown
from ..data.segmentation import points_of
from ..data.validate import DatasetError, DatasetSummary
from .coco import Advance, Item, Record, annotation, convert_images, read_json
from .id_masks import read_ids

SPLITS = ("train", "val")
PAPER_CLASSES = ("person", "rider", "car", "truck", "bus")

# Ids of the classes that have instances, and of all others: these hide what lies behind them.
INSTANCE_CLASSES = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "caravan": 29,
    "trailer": 30,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
_OTHERS = (
    "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, sidewalk, "
    "parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light, "
    "traffic sign, vegetation, terrain, sky"
)
_IDS = {name: number for number, name in enumerate(_OTHERS.split(", "))} | INSTANCE_CLASSES
_NOT_DRAWN = "license plate"  # belongs to its car and has no id
_GROUP, _STEP = "group", 1000  # id x 1000 + number is an instance; the bare id is a group of them

_IMAGE_END = "_leftImg8bit.png"
_ANNOTATION_ENDS = ("_gtFine_instanceIds.png", "_gtFine_polygons.json")


def convert_cityscapes(
    root: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] = PAPER_CLASSES,
    subset: tuple[int, int] | None = None,
    seed: int = 0,
    advance: Advance | None = None,
) -> dict[str, DatasetSummary]:
    """Write ``out``/instances_train.json and instances_val.json; the images stay where they are.

    File names are relative to ``root``/leftImg8bit/train and /val, category ids are Cityscapes' own. A group
    region ("persongroup") becomes a crowd region, one for each class and image, since the id images do not
    tell a class's groups apart. Continues where a killed call with the same arguments stopped.

    Args:
        root: holds leftImg8bit and gtFine.
        out: folder of the two JSON files.
        classes: names out of `INSTANCE_CLASSES`; the paper's five by default (section 4.1).
        subset: how many images of train and of val, or None for all. The paper has 450 and 50 and does not
            say which: here they are those with the smallest SHA-256 of "SEED/FILE NAME", so that the same
            seed draws the same ones on every machine and a larger subset holds the smaller one.
        seed: of the subset.
        advance: called with 1 after each image.

    Returns:
        What each split holds.

    Raises:
        DatasetError: missing files or faulty ones, each with its name.
        ValueError: unknown or repeated classes, or a subset below 1.
    """
    root, out, classes = Path(root), Path(out), list(classes)
    unknown = [name for name in classes if name not in INSTANCE_CLASSES]
    if unknown or not classes or len(set(classes)) < len(classes):
        raise ValueError(
            f"convert_cityscapes: expected classes to be different names out of "
            f"{', '.join(INSTANCE_CLASSES)}, got {', '.join(classes) or 'none'}"
        )
    if subset is not None and min(subset) < 1:
        raise ValueError(f"convert_cityscapes: expected subset to be at least 1 and 1, got {subset}")
    categories = {name: number for name, number in INSTANCE_CLASSES.items() if name in classes}
    items = {split: find_images(root, split) for split in SPLITS}
    if subset is not None:
        items = {k: _draw(root, k, items[k], n, seed) for k, n in zip(SPLITS, subset, strict=True)}

    def read(item: Item, size: tuple[int, int]) -> list[Record]:
        return _annotations(instance_ids(item.annotation, size), categories)

    return {
        split: convert_images(
            out / f"instances_{split}.json",
            root / "leftImg8bit" / split,
            items[split],
            read,
            settings={"layout": "cityscapes", "classes": sorted(categories)},
            categories=categories,
            advance=advance,
        )
        for split in SPLITS
    }


def count_images(root: str | Path, subset: tuple[int, int] | None) -> int:
    """How many images `convert_cityscapes` will convert.

    Raises:
        DatasetError: as there.
    """
    return sum(subset) if subset else sum(len(find_images(Path(root), split)) for split in SPLITS)


def find_images(root: Path, split: str) -> list[Item]:
    """The images of a split by name, each with the file of its objects.

    Raises:
        DatasetError: no images, or one without such a file.
    """
    folder = root / "leftImg8bit" / split
    items = []
    for image in sorted(folder.glob(f"*/*{_IMAGE_END}")):
        stem = image.name.removesuffix(_IMAGE_END)
        wanted = [root / "gtFine" / split / image.parent.name / f"{stem}{end}" for end in _ANNOTATION_ENDS]
        found = [path for path in wanted if path.exists()]
        if not found:
            raise DatasetError(f"{image}: expected its objects in {wanted[0]} or {wanted[1]}, found neither")
        items.append(Item(f"{image.parent.name}/{image.name}", image, found[0]))
    if not items:
        raise DatasetError(f"{folder}: expected Cityscapes' images, CITY/*{_IMAGE_END}, found none")
    return items


def instance_ids(path: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    """Cityscapes' id image, int32 [H, W]: class x 1000 + number for an instance, else the bare class.

    Args:
        path: an instanceIds.png, or a polygons.json to draw.
        size: (height, width) of the image.

    Raises:
        DatasetError: a file that does not have this form.
    """
    return read_ids(path, size) if path.suffix == ".png" else _drawn(path, size)


def _drawn(path: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    content = read_json(path)
    got = (content.get("imgHeight"), content.get("imgWidth"))
    if got != size:
        raise DatasetError(f"{path}: expected imgHeight and imgWidth {size} as the image has, got {got}")
    canvas = Image.new("I", (size[1], size[0]), _IDS["unlabeled"])
    pen = ImageDraw.Draw(canvas)
    numbers = dict.fromkeys(INSTANCE_CLASSES, 0)
    objects = content.get("objects")
    if not isinstance(objects, list):
        raise DatasetError(f"{path}: expected a list 'objects', got {shown(objects)}")
    for position, found in enumerate(objects):
        where = f"{path}: objects[{position}]"
        label, polygon = _label_and_polygon(where, found, size)
        if found.get("deleted") or label == _NOT_DRAWN:
            continue
        group = label not in _IDS and label.endswith(_GROUP)
        name = label.removesuffix(_GROUP) if group else label
        if name not in _IDS:
            raise DatasetError(f"{where}: expected a label of Cityscapes, got {label!r}")
        value = _IDS[name]
        if name in INSTANCE_CLASSES and not group:
            if numbers[name] == _STEP:
                raise DatasetError(f"{where}: expected at most {_STEP} instances of {name} in an image")
            value, numbers[name] = value * _STEP + numbers[name], numbers[name] + 1
        pen.polygon(polygon, fill=value)  # clips parts outside the image
    return np.asarray(canvas, dtype=np.int32)


def _label_and_polygon(
    where: str, found: Any, size: tuple[int, int]
) -> tuple[str, list[tuple[float, float]]]:
    found = found if isinstance(found, dict) else {"object": found}
    label, polygon = found.get("label"), points_of(found.get("polygon"), size)
    if polygon is None or len(polygon) < 2 or not isinstance(label, str):
        raise DatasetError(f"{where}: expected a label and a polygon [[x, y], ...], got {shown(found)}")
    return label, polygon


def _annotations(ids: NDArray[np.int32], categories: dict[str, int]) -> list[Record]:
    """Instances by class and number, each class's group last."""
    columns = np.ascontiguousarray(ids.T)  # run lengths go down columns
    present = np.unique(ids)
    found = []
    for name, number in categories.items():
        own = present[present // _STEP == number]
        for value in (*own, *present[present == number]):
            found.append(annotation(name, (columns == value).T, crowd=value == number))
    return found


def _draw(root: Path, split: str, items: list[Item], count: int, seed: int) -> list[Item]:
    if count > len(items):
        raise DatasetError(
            f"{root / 'leftImg8bit' / split}: expected at least {count} images to draw from, found "
            f"{len(items)}"
        )
    drawn = sorted(items, key=lambda item: hashlib.sha256(f"{seed}/{item.file_name}".encode()).digest())
    return sorted(drawn[:count], key=lambda item: item.file_name)
