"""Faults of a COCO-format data set, found before training starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

_SHOWN = 10  # faults that a message lists; it counts the rest


class DatasetError(ValueError):
    """A data set that cannot be used: names the file, image id or annotation id of each fault."""


@dataclass(frozen=True)
class DatasetSummary:
    """What a data set holds; ``str()`` of it is one line.

    Attributes:
        images: all of them.
        images_without_objects: those with no annotation other than crowd regions.
        annotations: crowd regions included.
        crowds: crowd regions.
        categories: all of them.
    """

    images: int
    images_without_objects: int
    annotations: int
    crowds: int
    categories: int

    def __str__(self) -> str:
        return (
            f"{self.images} images ({self.images_without_objects} without objects), {self.annotations} "
            f"annotations ({self.crowds} crowd regions), {self.categories} categories"
        )


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The JSON of an annotation file, with the three lists that COCO's format has.

    Raises:
        DatasetError: no such file, an empty one, not JSON, or a list missing or empty where it must not be.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a readable annotation file: {error}") from error
    if not text.strip():
        raise DatasetError(f"{path}: expected COCO annotations, got an empty file")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: expected JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path}: expected COCO annotations with a list {key!r}, and there is none")
    for key in ("images", "categories"):
        if not content[key]:
            raise DatasetError(f"{path}: expected at least one entry in {key!r}, got none")
    return content


def check_dataset(images: str | Path, annotations: str | Path, *, decode: bool = False) -> DatasetSummary:
    """Look for everything that would stop a training later.

    Args:
        images: folder that the annotations' file names are relative to.
        annotations: COCO-format JSON.
        decode: also decode every image, which finds truncated ones and takes its time.

    Raises:
        DatasetError: one message for all faults; it lists the first ones and counts the rest.
    """
    content = read_annotations(annotations)
    faults = [
        *_category_faults(content),
        *_image_faults(Path(images), content, decode),
        *_annotation_faults(content),
    ]
    if faults:
        more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:_SHOWN])
        raise DatasetError(f"{annotations}: {len(faults)} fault(s) in the data set:{listed}{more}")
    objects = {a["image_id"] for a in content["annotations"] if not a.get("iscrowd")}
    return DatasetSummary(
        images=len(content["images"]),
        images_without_objects=len(content["images"]) - len(objects),
        annotations=len(content["annotations"]),
        crowds=sum(bool(a.get("iscrowd")) for a in content["annotations"]),
        categories=len(content["categories"]),
    )


def open_image(path: Path, image_id: int) -> Image.Image:
    """Decode an image to RGB, as its pixels are stored: annotations know nothing of EXIF orientation.

    Raises:
        DatasetError: missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for broken files
        raise DatasetError(f"{path} (image id {image_id}): cannot be read as an image: {error}") from error


def _category_faults(content: dict[str, Any]) -> Iterator[str]:
    seen = set()
    for k, category in enumerate(content["categories"]):
        if not isinstance(category, dict) or "id" not in category or "name" not in category:
            yield f"categories[{k}]: expected an id and a name, got {category!r}"
        elif category["id"] in seen:
            yield f"category id {category['id']}: stands more than once"
        else:
            seen.add(category["id"])


def _image_faults(folder: Path, content: dict[str, Any], decode: bool) -> Iterator[str]:
    seen = set()
    for k, entry in enumerate(content["images"]):
        missing = {"id", "file_name", "height", "width"} - set(entry if isinstance(entry, dict) else ())
        if missing:
            yield f"images[{k}]: expected {', '.join(sorted(missing))}, got {entry!r}"
            continue
        image_id, path = entry["id"], folder / entry["file_name"]
        if image_id in seen:
            yield f"image id {image_id}: stands more than once"
        seen.add(image_id)
        fault = _file_fault(path, entry, decode)
        if fault:
            yield f"{path} (image id {image_id}): {fault}"


def _file_fault(path: Path, entry: dict[str, Any], decode: bool) -> str | None:
    if not path.is_file():
        return "no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    try:
        with Image.open(path) as image:  # reads the header only
            size = image.size
            if decode:
                image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot be read as an image: {error}"
    if size != (entry["width"], entry["height"]):
        return f"expected {entry['width']} x {entry['height']} pixels as annotated, got {size[0]} x {size[1]}"
    return None


def _annotation_faults(content: dict[str, Any]) -> Iterator[str]:
    sizes = {
        i["id"]: (i["height"], i["width"])
        for i in content["images"]
        if isinstance(i, dict) and {"id", "height", "width"} <= set(i)
    }
    categories = {c["id"] for c in content["categories"] if isinstance(c, dict) and "id" in c}
    seen = set()
    for k, annotation in enumerate(content["annotations"]):
        needed = {"id", "image_id", "category_id", "bbox", "segmentation"}
        missing = needed - set(annotation if isinstance(annotation, dict) else ())
        if missing:
            yield f"annotations[{k}]: expected {', '.join(sorted(missing))}"
            continue
        name = f"annotation id {annotation['id']}"
        if annotation["id"] in seen:
            yield f"{name}: stands more than once"
        seen.add(annotation["id"])
        if annotation["category_id"] not in categories:
            yield f"{name}: unknown category id {annotation['category_id']}"
        if annotation["image_id"] not in sizes:
            yield f"{name}: belongs to image id {annotation['image_id']}, which is not in the file"
            continue
        fault = _box_fault(annotation["bbox"]) or _segmentation_fault(
            annotation["segmentation"], sizes[annotation["image_id"]]
        )
        if fault:
            yield f"{name}: {fault}"


def _box_fault(box: Any) -> str | None:
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    ):
        return f"expected bbox to be four finite numbers [x, y, width, height], got {box!r}"
    if box[2] <= 0 or box[3] <= 0:
        return f"expected bbox with a width and height above 0, got {box!r}"
    return None


def _segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    if isinstance(segmentation, dict):
        got = segmentation.get("size")
        if "counts" not in segmentation or list(got or ()) != list(size):
            return f"expected a run-length encoding of size {list(size)} as the image is, got size {got!r}"
        return None
    if not isinstance(segmentation, list) or not segmentation:
        return f"expected segmentation to be polygons or a run-length encoding, got {segmentation!r:.60}"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return f"expected polygons of at least 3 points, [x1, y1, x2, y2, ...], got {polygon!r:.60}"
    return None
