"""COCO's format: a model's instances as COCO results, and other layouts assembled into a COCO dataset.

Datasets in COCO's format are read by `solo_attn.data.CocoInstances`. A conversion goes image by image, on all
cores, and continues where a killed one stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from .._utils.checks import Prediction, check_prediction
from .._utils.files import replacing, write_lists
from .._utils.readers import one_line
from .._utils.readers import read_json as read_json_of
from ..data.images import UNREADABLE
from ..data.pictures import open_picture, stored_and_shown
from ..data.validate import DatasetError, DatasetSummary, check_content, raise_faults

_RECORD = {"file_name", "stamp", "size", "annotations"}  # of a finished image

Advance = Callable[[int], None]
Record = dict[str, Any]


def coco_results(image_id: int, prediction: Prediction, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's instances as COCO results, ready for `json`.

    Args:
        image_id: COCO's id of the image.
        prediction: ``boxes`` float [N, 4] xyxy in pixels, ``labels`` int64 [N], ``scores`` float [N],
            ``masks`` bool [N, H, W] at the image's original size, or N run lengths as `SOLO.predict` gives
            them.
        category_ids: the COCO category id of each label.

    Returns:
        N dicts: ``image_id``, ``category_id``, ``bbox`` xywh, ``score`` and ``segmentation``, a compressed
        RLE whose counts are a str.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, or a label has no category id.
    """
    check_prediction("coco_results", prediction, len(category_ids), rle=True)
    boxes = prediction["boxes"].detach().cpu().double().clone()
    boxes[:, 2:] -= boxes[:, :2]
    labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
    masks = prediction["masks"]
    if isinstance(masks, Tensor):
        pixels = masks.detach().cpu().numpy().astype(np.uint8, copy=False)
        masks = [coco_mask.encode(np.asfortranarray(mask)) for mask in pixels]
    results = []
    for label, score, box, rle in zip(labels, scores, boxes.tolist(), masks, strict=True):
        counts = rle["counts"]
        results.append(
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": box,
                "score": float(score),
                "segmentation": {
                    "size": [int(side) for side in rle["size"]],
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                },
            }
        )
    return results


def write_results(path: str | Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Write COCO results as JSON; ``path`` is either left as it was or complete.

    Raises:
        OSError: ``path`` cannot be written.
    """
    write_lists(path, results, "write_results")


def coco_annotations(
    results: Iterable[Mapping[str, Any]], score_threshold: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Results as the annotations of a dataset, numbered from 1, each with ``area`` and its ``score``.

    Args:
        results: what `coco_results` gives.
        score_threshold: scores from which they are taken, inclusive.
    """
    number = 0
    for result in results:
        if result["score"] >= score_threshold:
            number += 1
            yield {
                "id": number,
                **{key: result[key] for key in ("image_id", "category_id", "bbox", "segmentation", "score")},
                "area": int(coco_mask.area(result["segmentation"])),
                "iscrowd": 0,
            }


def write_dataset(
    path: str | Path,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Iterable[Mapping[str, Any]],
) -> None:
    """Write a whole dataset in COCO's format, which CVAT imports and `solo_attn.data.CocoInstances` reads.

    Args:
        path: of the JSON, which is either left as it was or complete.
        images: dicts of ``id``, ``file_name``, ``height`` and ``width``.
        annotations: what `coco_annotations` gives.
        categories: dicts of ``id`` and ``name``.

    Raises:
        OSError: ``path`` cannot be written.
    """
    lists = {"images": images, "categories": categories, "annotations": annotations}
    write_lists(path, lists, "write_dataset")


@dataclass(frozen=True)
class Item:
    """An image to convert.

    Attributes:
        file_name: relative to the images' folder, with "/".
        image: its file.
        annotation: the file that its objects are read from.
    """

    file_name: str
    image: Path
    annotation: Path

    @property
    def stamp(self) -> list[list[int]]:
        """A value that changes if one of the files does; an image without objects may have no annotations."""
        files = [self.image, *([self.annotation] if self.annotation.exists() else [])]
        return [[state.st_size, state.st_mtime_ns] for state in (file.stat() for file in files)]


def convert_images(
    out: Path,
    images: Path,
    items: Sequence[Item],
    read: Callable[[Item, tuple[int, int]], list[Record]],
    *,
    settings: Mapping[str, Any],
    categories: Mapping[str, int] | None = None,
    advance: Advance | None = None,
) -> DatasetSummary:
    """Convert ``items`` and write them, checked, as COCO's JSON.

    Each finished image is a line of ``.NAME.partial`` beside ``out``. The next call with the same settings
    uses the lines whose files have not changed since, and removes the file when ``out`` is complete.

    Args:
        out: the JSON; it is written completely or not at all.
        images: folder that the file names are relative to.
        items: what to convert, in the order of the image ids.
        read: (item, its (height, width)) -> annotations, as `annotation` makes them.
        settings: what ``read`` depends on besides the files, as JSON.
        categories: id of each name; None numbers the names that come up, in their alphabetical order.
        advance: called with 1 after each image, from this thread.

    Raises:
        DatasetError: one message for all images that cannot be converted; the others are kept for the next
            call.
    """
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _read_partial(partial, settings)

    def convert(item: Item) -> Record | DatasetError:
        try:
            stamp = item.stamp
            kept = done.get(item.file_name)
            if kept is not None and kept["stamp"] == stamp:
                return kept
            size = _size(item.image)
            return {
                "file_name": item.file_name,
                "stamp": stamp,
                "size": size,
                "annotations": read(item, size),
            }
        except DatasetError as error:
            return error
        except OSError as error:
            return DatasetError(str(error))

    records, faults = [], []
    # Threads are enough: decoding and encoding release the interpreter's lock.
    with (
        _Lines(partial, {"settings": settings}, done.values()) as lines,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for result in pool.map(convert, items):
            if isinstance(result, DatasetError):
                faults.append(str(result))
            else:
                records.append(result)
                if result is not done.get(result["file_name"]):
                    lines.add(result)
            if advance is not None:
                advance(1)
    raise_faults(out, faults)
    content = _content(records, categories)
    summary = check_content(content, images, out)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    partial.unlink()
    return summary


def annotation(category: str, mask: NDArray[np.bool_], *, crowd: bool = False) -> Record:
    """An object of the category's name; ``mask`` bool [H, W] has at least one pixel."""
    encoded: Any = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    return {
        "category": category,
        "bbox": [float(x) for x in coco_mask.toBbox(encoded)],
        "area": int(coco_mask.area(encoded)),
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()},
        "iscrowd": int(crowd),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DatasetError: no such file, or something else in it.
    """
    content = read_json_of(path, DatasetError)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a JSON object, got a {type(content).__name__}")
    return content


def _size(path: Path) -> tuple[int, int]:
    try:
        with open_picture(path) as image:  # reads the header only
            orientation, size, _ = stored_and_shown(image)
    except UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read as an image: {one_line(error)}") from error
    if orientation != 1:
        raise DatasetError(
            f"{path}: expected an image without EXIF rotation, got orientation {orientation}: some tools "
            "annotate it turned, others as stored; save it upright and annotate that"
        )
    return size


def _content(records: Sequence[Record], categories: Mapping[str, int] | None) -> dict[str, Any]:
    if categories is None:
        names = sorted({a["category"] for record in records for a in record["annotations"]})
        categories = {name: number for number, name in enumerate(names, start=1)}
    images: list[Record] = []
    annotations: list[Record] = []
    for image_id, record in enumerate(records, start=1):
        height, width = record["size"]
        images.append({"id": image_id, "file_name": record["file_name"], "height": height, "width": width})
        for found in record["annotations"]:
            entry = {"id": len(annotations) + 1, "image_id": image_id}
            entry["category_id"] = categories[found["category"]]
            annotations.append(entry | {k: v for k, v in found.items() if k != "category"})
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": listed}


class _Lines:
    """The file of finished images: rewritten with the valid ones, then one line for each new image."""

    def __init__(self, path: Path, header: Mapping[str, Any], kept: Any) -> None:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in (header, *kept))
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        self._file.write(f"{json.dumps(record)}\n")
        self._file.flush()  # a killed process loses what is still in its buffer

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _read_partial(path: Path, settings: Mapping[str, Any]) -> dict[str, Record]:
    """The finished images of an earlier call with these settings."""
    if not path.exists():
        return {}
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break  # the process was killed within this line
    if not found or found[0] != {"settings": json.loads(json.dumps(settings))}:
        return {}
    whole = [record for record in found[1:] if isinstance(record, dict) and record.keys() >= _RECORD]
    return {record["file_name"]: record for record in whole}
