"""Faults of a COCO-format dataset, found before training starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, cast

from .._utils.checks import is_finite
from .._utils.errors import SoloAttnError
from .._utils.limits import PREFIX, limits
from .._utils.readers import read_json
from .._utils.text import name_fault, printable, quantity, shown
from .images import Percentiles, file_fault
from .segmentation import FAR, segmentation_fault

_INT64 = 2**63  # ids beyond it do not fit NumPy, PyTorch and pycocotools
_SHOWN = 10  # faults that a message lists; it counts the rest

OnDegenerate = Literal["error", "skip"]


class DatasetError(SoloAttnError, ValueError):
    """A dataset that cannot be used: names the file, image id or annotation id of each fault."""


@dataclass(frozen=True)
class DatasetSummary:
    """What a dataset holds; ``str()`` of it is one line.

    Attributes:
        images: all of them.
        images_without_objects: those with nothing to learn: no annotation, or crowd regions only.
        annotations: crowd regions included.
        crowds: crowd regions.
        categories: all of them.
        degenerate: annotations that ``on_degenerate="skip"`` leaves out.
    """

    images: int
    images_without_objects: int
    annotations: int
    crowds: int
    categories: int
    degenerate: int = 0

    def __str__(self) -> str:
        left_out = f", {self.degenerate} without width or height" if self.degenerate else ""
        return (
            f"{quantity(self.images, 'image')} ({self.images_without_objects} without objects), "
            f"{quantity(self.annotations, 'annotation')} "
            f"({quantity(self.crowds, 'crowd region')}{left_out}), "
            f"{quantity(self.categories, 'category', 'categories')}"
        )


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The JSON of an annotation file, with the three lists that COCO's format has.

    Raises:
        DatasetError: no such file, an empty one, not JSON, or a list missing or empty where it must not be.
    """
    content = read_json(path, DatasetError)
    check_lists(content, path)
    return cast("dict[str, Any]", content)


def check_lists(content: Any, name: str | Path) -> None:
    """Refuse what does not have the three lists of COCO's format.

    Args:
        content: the JSON of an annotation file.
        name: the file, or what else the message calls it.

    Raises:
        DatasetError: no object, or a list missing or empty where it must not be.
    """
    if not isinstance(content, dict):
        raise DatasetError(f"{name}: expected a COCO object, got a JSON {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = f"a {type(content[key]).__name__}" if key in content else "none"
            # Test sets have no annotations: they are for prediction, not for training.
            raise DatasetError(f"{name}: expected COCO annotations with a list {key!r}, got {what}")
    for key in ("images", "categories"):
        if not content[key]:
            raise DatasetError(f"{name}: expected at least one entry in {key!r}, got none")


def check_dataset(
    images: str | Path,
    annotations: str | Path,
    *,
    decode: bool = False,
    on_degenerate: OnDegenerate = "error",
    percentiles: Percentiles = None,
) -> DatasetSummary:
    """Look for everything that would stop a training later, or silently falsify it.

    Args:
        images: folder that the annotations' file names are relative to.
        annotations: COCO-format JSON.
        decode: also decode every image, which finds truncated ones and takes a while.
        on_degenerate: whether a box with no width or height is a fault ("error"), or is counted and left
            out ("skip").
        percentiles: with these, images of more than 8 bits a channel are no fault; see `read_image`.

    Raises:
        DatasetError: one message for all faults; it lists the first ones and counts the rest.
        ValueError: another ``on_degenerate``.
    """
    content = read_annotations(annotations)
    return check_content(
        content,
        images,
        annotations,
        decode=decode,
        on_degenerate=on_degenerate,
        percentiles=percentiles,
    )


def check_content(
    content: dict[str, Any],
    images: str | Path,
    annotations: str | Path,
    *,
    decode: bool = False,
    on_degenerate: OnDegenerate = "error",
    percentiles: Percentiles = None,
) -> DatasetSummary:
    """`check_dataset` of what `read_annotations` has read from ``annotations``."""
    if on_degenerate not in ("error", "skip"):
        raise ValueError(f"check_dataset: expected on_degenerate 'error' or 'skip', got {on_degenerate!r}")
    if not Path(images).is_dir():
        raise DatasetError(
            f"{annotations}: expected the folder of its images, got {images}, which is not there"
        )
    faults = [
        *_category_faults(content),
        *_image_faults(content, Path(images), decode, percentiles),
        *_annotation_faults(content, _NEEDED, skip_degenerate=on_degenerate == "skip"),
    ]
    raise_faults(annotations, faults)
    entries = content["annotations"]
    return DatasetSummary(
        images=len(content["images"]),
        images_without_objects=len(content["images"]) - len({a["image_id"] for a in entries if is_object(a)}),
        annotations=len(entries),
        crowds=sum(bool(a.get("iscrowd")) for a in entries),
        categories=len(content["categories"]),
        degenerate=sum(_is_degenerate(a["bbox"]) for a in entries),
    )


def check_ground_truth(content: Any, name: str | Path, shape: Literal["segmentation", "bbox"]) -> None:
    """The checks of `check_dataset` that an evaluation depends on: it reads no images.

    Annotations need neither an id nor the other shape, and the id may be a duplicate: other tools write such
        files, and their evaluation is well defined.

    Args:
        content: the JSON of an annotation file.
        name: the file, or what else the message calls it.
        shape: what is compared with the results.

    Raises:
        DatasetError: one message for all faults; it lists the first ones and counts the rest.
    """
    check_lists(content, name)
    faults = [
        *_category_faults(content),
        *_image_faults(content),
        *_annotation_faults(content, ("image_id", "category_id", shape, "area"), skip_degenerate=True),
    ]
    raise_faults(name, faults)


def raise_faults(annotations: str | Path, faults: Sequence[str]) -> None:
    """One message for all faults of a dataset, if there are any; it lists the first ones."""
    if faults:
        more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:_SHOWN])
        raise DatasetError(f"{annotations}: {len(faults)} fault(s) in the dataset:{listed}{more}")


def is_object(annotation: Mapping[str, Any]) -> bool:
    """Whether it is an object to learn: no crowd region and no degenerate box."""
    return not annotation.get("iscrowd") and not _is_degenerate(annotation["bbox"])


def drop_unusable(content: dict[str, Any]) -> None:
    """After a check that skips them, remove annotations without width or height and without a shape.

    Those with a shape are kept: the evaluation counts them as COCO does.
    """
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
    content["annotations"] = [
        one
        for one in content["annotations"]
        if not _is_degenerate(one["bbox"])
        or segmentation_fault(one["segmentation"], sizes[one["image_id"]]) is None
    ]


def _is_id(value: Any) -> bool:
    return type(value) is int and -_INT64 <= value < _INT64  # True is no id


def _size_fault(entry: dict[str, Any]) -> str | None:
    height, width = entry.get("height"), entry.get("width")
    if type(height) is not int or type(width) is not int:
        return f"expected height and width as integers, got {shown([height, width])}"
    if height < 1 or width < 1 or height * width > limits.image_pixels:
        return (
            f"expected height and width of 1 to {limits.image_pixels} pixels ({PREFIX}IMAGE_PIXELS), got "
            f"{shown([height, width])}"
        )
    return None


def _category_faults(content: dict[str, Any]) -> Iterator[str]:
    seen = set()
    for k, category in enumerate(content["categories"]):
        if not isinstance(category, dict) or not _is_id(category.get("id")) or "name" not in category:
            yield f"categories[{k}]: expected an integer id of 64 bits and a name, got {shown(category)}"
        elif category["id"] in seen:
            yield f"category id {category['id']}: duplicate id"
        else:
            seen.add(category["id"])
            if fault := name_fault(category["name"]):
                yield f"category id {category['id']}: {fault}"


def _image_faults(
    content: dict[str, Any],
    folder: Path | None = None,
    decode: bool = False,
    percentiles: Percentiles = None,
) -> Iterator[str]:
    """Faults of the entries; with ``folder`` also of the files in it."""
    seen = set()
    needed = {"id", "height", "width"} | ({"file_name"} if folder is not None else set())
    for k, entry in enumerate(content["images"]):
        missing = needed - set(entry if isinstance(entry, dict) else ())
        if missing:
            yield f"images[{k}]: expected {', '.join(sorted(missing))}, got {shown(entry)}"
            continue
        image_id, name = entry["id"], entry.get("file_name")
        if not _is_id(image_id) or (folder is not None and not isinstance(name, str)):
            got = f"{shown(image_id)} and {shown(name)}"
            yield f"images[{k}]: expected an integer id of 64 bits and a file name, got {got}"
            continue
        if fault := _size_fault(entry):
            yield f"image id {image_id}: {fault}"
            continue
        if image_id in seen:
            yield f"image id {image_id}: duplicate id"
        seen.add(image_id)
        if folder is not None and (fault := file_fault(folder / name, entry, decode, percentiles)):
            yield f"{printable(str(folder / name))} (image id {image_id}): {fault}"


# Of an annotation. The evaluation needs the area: without it, training would stop after its first epoch.
_NEEDED = ("id", "image_id", "category_id", "bbox", "segmentation", "area")


def _annotation_faults(
    content: dict[str, Any], needed: Sequence[str], *, skip_degenerate: bool
) -> Iterator[str]:
    """Faults of the annotations, in the keys that are needed."""
    sizes = {
        entry["id"]: (entry["height"], entry["width"])
        for entry in content["images"]
        if isinstance(entry, dict) and _is_id(entry.get("id")) and _size_fault(entry) is None
    }
    categories = {c["id"] for c in content["categories"] if isinstance(c, dict) and _is_id(c.get("id"))}
    seen = set()
    ids = [key for key in needed if key.endswith("id")]
    counts: Counter[int] = Counter()
    for k, annotation in enumerate(content["annotations"]):
        missing = set(needed) - set(annotation if isinstance(annotation, dict) else ())
        if missing:
            name = shown(annotation.get("id", "?") if isinstance(annotation, dict) else "?")
            yield f"annotations[{k}] (annotation id {name}): expected {', '.join(sorted(missing))}"
            continue
        found = [annotation[key] for key in ids]
        if not all(map(_is_id, found)):
            yield f"annotations[{k}]: expected integers of 64 bits as {', '.join(ids)}, got {shown(found)}"
            continue
        name = f"annotations[{k}]"
        if "id" in ids:
            name = f"annotation id {annotation['id']}"
            if annotation["id"] in seen:
                yield f"{name}: duplicate id"
            seen.add(annotation["id"])
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if category_id not in categories:
            yield f"{name}: unknown category id {category_id}"
        if image_id not in sizes:
            yield f"{name}: belongs to image id {image_id}, which is not usable or not in the file"
            continue
        counts[image_id] += 1
        box = annotation["bbox"] if "bbox" in needed else None
        fault = _box_fault(box, sizes[image_id], skip_degenerate) if "bbox" in needed else None
        left_out = box is not None and fault is None and _is_degenerate(box)
        if fault is None and "segmentation" in needed and not left_out:
            fault = segmentation_fault(annotation["segmentation"], sizes[image_id])
        if fault:
            yield f"{name}: {fault}"
        for key, (right, expected) in _MEASURES.items():
            if key in annotation and not right(annotation[key]):
                yield f"{name}: expected {key} to be {expected}, got {shown(annotation[key])}"
    for image_id, count in counts.items():
        if count > limits.image_annotations:
            most = f"{limits.image_annotations} annotations of an image ({PREFIX}IMAGE_ANNOTATIONS)"
            yield f"image id {image_id}: expected at most {most}, got {count}"


# A test of the value, and its description. pycocotools does not check: every value but 0 is a crowd to it,
# and a negative area belongs to no range of sizes.
_MEASURES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "area": (lambda value: is_finite(value) and value >= 0, "a finite number of at least 0"),
    "iscrowd": (
        lambda value: isinstance(value, Real) and value in (0, 1),
        "0, 1, true or false, if it is there",
    ),
}


def _is_degenerate(box: list[float]) -> bool:
    return box[2] <= 0 or box[3] <= 0


def _box_fault(box: Any, size: tuple[int, int], skip_degenerate: bool) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        return f"expected bbox to be four finite numbers [x, y, width, height], got {shown(box)}"
    if max(map(abs, box)) > FAR * max(size):
        return f"expected bbox in pixels of the image, got {shown(box)}"
    if _is_degenerate(box) and not skip_degenerate:
        return (
            f"expected bbox with a width and height above 0, got {shown(box)} "
            '(on_degenerate="skip" leaves such ones out)'
        )
    return None
