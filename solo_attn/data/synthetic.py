"""Synthetic street scenes: rows of look-alikes of one class, touching and overlapping, as COCO data.

Nearer objects are painted over farther ones, and the annotated mask of each is its visible part, as in
Cityscapes. Each scene depends only on (seed, split, index).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image, ImageDraw

from .._utils.files import replacing
from ._street_shapes import SHAPES, Colour, Look, Points, group_look, individual_look, shade

CATEGORIES = ("person", "rider", "car", "truck", "bus")  # the paper's (section 4.1), ids 1..5
_OVERSAMPLE = 3
_MIN_PIXELS = 12
_LEAST_SHOWN = 0.4  # of an object; those that would hide more are not drawn
_VERSION = 3  # of the drawing: scenes of another version are drawn anew

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Thing:
    category: int
    box: Box  # x1, y1, x2, y2 in pixels
    look: Look
    mirrored: bool


@dataclass(frozen=True)
class StreetScenes:
    """The files that `write_street_scenes` has written; the test part is None without test scenes."""

    train_images: Path
    train_annotations: Path
    val_images: Path
    val_annotations: Path
    test_images: Path | None = None
    test_annotations: Path | None = None


def write_street_scenes(
    folder: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int = 0,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
) -> StreetScenes:
    """Write PNG images and COCO annotations (run-length encodings of the visible pixels).

    A folder that already holds the same scenes is not changed.

    Args:
        folder: receives train/, val/, train.json and val.json; with ``num_test`` test/ and test.json too.
        num_train: scenes for training.
        num_val: scenes for validation.
        num_test: scenes for a test.
        size: (height, width) in pixels, at least 32 x 32.
        seed: of all scenes.

    Raises:
        ValueError: a number of scenes below 1 or a size that is too small.
    """
    if num_train < 1 or num_val < 1 or num_test < 0:
        raise ValueError(
            f"write_street_scenes: expected num_train, num_val >= 1 and num_test >= 0, got {num_train}, "
            f"{num_val}, {num_test}"
        )
    if min(size) < 32:
        raise ValueError(f"write_street_scenes: expected size of at least (32, 32), got {size}")
    folder = Path(folder)
    counts = {"train": num_train, "val": num_val, **({"test": num_test} if num_test else {})}
    places = [path for part in counts for path in (folder / part, folder / f"{part}.json")]
    scenes = StreetScenes(*places)
    parameters = {
        "version": _VERSION,
        **{f"num_{part}": count for part, count in counts.items()},
        "size": list(size),
        "seed": seed,
    }
    done = folder / "scenes.json"
    if _read(done) == parameters:
        return scenes
    done.unlink(missing_ok=True)
    for number, (part, count) in enumerate(counts.items()):
        _write_split(folder / part, folder / f"{part}.json", count, size, (seed, number))
    with replacing(done) as temporary:  # last: an interrupted writing starts again
        temporary.write_text(json.dumps(parameters), encoding="utf-8")
    return scenes


def draw_scene(size: tuple[int, int], key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One scene.

    Args:
        size: (height, width).
        key: what the scene depends on, such as (seed, split, index).

    Returns:
        uint8 image [H, W, 3]; uint8 map [H, W] of the visible object, 0 for none, else 1 + its index; and
        the index into `CATEGORIES` of each object.
    """
    rng = np.random.default_rng(key)
    height, width = size
    horizon = height * rng.uniform(0.25, 0.35)
    street = Image.new("RGB", (width * _OVERSAMPLE, height * _OVERSAMPLE))
    _background(street, horizon * _OVERSAMPLE, rng)
    things = sorted(_crowd(size, horizon, rng), key=lambda thing: thing.box[3])  # farther ones first
    canvas, owner, shown = _paint(street, things)
    if any(part < _LEAST_SHOWN for part in shown):  # the others remain visible without them
        things = [thing for thing, part in zip(things, shown, strict=True) if part >= _LEAST_SHOWN]
        canvas, owner, _ = _paint(street, things)
    image = canvas.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.int16) + rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    middle = slice(_OVERSAMPLE // 2, None, _OVERSAMPLE)
    owners = np.asarray(owner)[middle, middle]
    return pixels.clip(0, 255).astype(np.uint8), owners, [thing.category for thing in things]


def _paint(street: Image.Image, things: Sequence[_Thing]) -> tuple[Image.Image, Image.Image, list[float]]:
    """Picture, map of owners (index + 1), and the fraction of each one inside the picture that is visible."""
    canvas = street.copy()
    # As large as the canvas: PIL also fills the pixels that an outline touches, which at the final size
    # would make a mask half a pixel larger on each side than its object is in the picture.
    owner = Image.new("L", canvas.size, 0)  # 255 objects; a scene has 3 rows of 8 at most
    draw, draw_owner = ImageDraw.Draw(canvas), ImageDraw.Draw(owner)
    whole = []
    for index, thing in enumerate(things):

        def fill(
            kind: str, points: Points, colour: Colour, thing: _Thing = thing, index: int = index
        ) -> None:
            x1, y1, x2, y2 = (_OVERSAMPLE * side for side in thing.box)
            placed = [
                (x1 + (1 - x if thing.mirrored else x) * (x2 - x1), y1 + y * (y2 - y1)) for x, y in points
            ]
            if kind == "ellipse":
                (left, top), (right, bottom) = placed
                placed = [(min(left, right), top), (max(left, right), bottom)]
            getattr(draw, kind)(placed, fill=colour)
            getattr(draw_owner, kind)(placed, fill=index + 1)

        SHAPES[thing.category](fill, thing.look)
        whole.append(owner.histogram()[index + 1])
    left = owner.histogram()
    return canvas, owner, [left[k + 1] / pixels if pixels else 0.0 for k, pixels in enumerate(whole)]


def _write_split(
    images: Path, annotations: Path, count: int, size: tuple[int, int], key: tuple[int, int]
) -> None:
    images.mkdir(parents=True, exist_ok=True)
    height, width = size
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CATEGORIES)],
    }
    for index in range(count):
        image, owner, categories = draw_scene(size, (*key, index))
        name = f"{index:05d}.png"
        Image.fromarray(image).save(images / name)
        content["images"].append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for k, category in enumerate(categories):
            mask = owner == k + 1
            if mask.sum() < _MIN_PIXELS:
                continue  # hidden behind others
            encoded: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index + 1,
                    "category_id": category + 1,
                    "bbox": coco_mask.toBbox(encoded).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                }
            )
    with replacing(annotations) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _read(done: Path) -> Any:
    """The content of the folder's record, or None if none can be read."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _crowd(size: tuple[int, int], horizon: float, rng: np.random.Generator) -> list[_Thing]:
    """Rows of one class each, standing on the ground, each at a depth of its own."""
    height, width = size
    things: list[_Thing] = []
    rows = int(rng.integers(2, 4))
    for row in range(rows):
        category = int(rng.choice(len(CATEGORIES), p=[0.26, 0.18, 0.26, 0.15, 0.15]))
        tall, ratio, most = _SIZES[category]
        # The place of the row decides its size: nearer ones are larger.
        depth = (row + rng.uniform(0.2, 1.0)) / rows
        ground = horizon + (0.25 + 0.72 * depth) * (height - horizon)
        high = tall * height * (0.45 + 0.55 * depth)
        wide = high * ratio
        group = group_look(rng)  # look-alikes: objects of a row look nearly the same
        mirrored = bool(rng.random() < 0.5)
        x = rng.uniform(-0.1, 0.6) * width
        for _ in range(rng.integers(2, most + 1)):
            scale = rng.uniform(0.9, 1.1)
            y = ground + rng.uniform(-0.02, 0.02) * height
            box = (x, y - high * scale, x + wide * scale, y)
            if box[2] > 0.25 * wide and box[0] < width - 0.25 * wide:
                things.append(_Thing(category, box, individual_look(group, rng), mirrored))
            x += wide * rng.uniform(0.7, 1.1)  # from overlapping to side by side
    return things


def _background(canvas: Image.Image, horizon: float, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    light = rng.uniform(0.75, 1.1)
    draw.rectangle((0, 0, width, horizon), fill=shade((150, 185, 220), light))
    x = 0.0
    while x < width:  # buildings
        wide = rng.uniform(0.08, 0.2) * width
        tone = shade((150, 140, 130), light * rng.uniform(0.75, 1.1))
        top = horizon * rng.uniform(0.05, 0.7)
        draw.rectangle((x, top, x + wide, horizon), fill=tone)
        step = max(6.0, 0.035 * width)
        for wx in np.arange(x + step / 2, x + wide - step / 2, step):
            for wy in np.arange(top + step / 2, horizon - step / 2, step):
                draw.rectangle((wx, wy, wx + step / 2.5, wy + step / 2), fill=shade(tone, 0.72))
        x += wide
    draw.rectangle((0, horizon, width, height), fill=shade((98, 98, 102), light))
    draw.rectangle((0, horizon, width, horizon + 0.06 * height), fill=shade((150, 148, 142), light))
    centre = width * rng.uniform(0.35, 0.65)
    for k in range(6):  # lane markings towards the vanishing point
        near, far = 1 - k / 6.5, 1 - (k + 0.45) / 6.5
        ys = [horizon + (0.08 + 0.92 * t * t) * (height - horizon) for t in (near, far)]
        w = [0.012 * width * t for t in (near, far)]
        draw.polygon(
            [(centre - w[0], ys[0]), (centre + w[0], ys[0]), (centre + w[1], ys[1]), (centre - w[1], ys[1])],
            fill=shade((205, 205, 195), light),
        )


# Height of a near one as a part of the image's, width / height, most in a row.
_SIZES = ((0.64, 0.38, 8), (0.60, 0.85, 5), (0.38, 1.9, 4), (0.54, 1.5, 3), (0.50, 1.9, 3))
