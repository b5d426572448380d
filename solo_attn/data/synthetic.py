"""Synthetic street scenes: many look-alikes of one class side by side and overlapping, as COCO data.

Nearer objects are painted over farther ones, and the annotated mask of each is what stays visible, as in
Cityscapes. Each scene is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image, ImageDraw

from .._utils.files import replacing

CATEGORIES = ("person", "rider", "car", "truck", "bus")  # the paper's (section 4.1), ids 1..5
_OVERSAMPLE = 3
_MIN_PIXELS = 12
_VERSION = 2  # of the drawing: scenes of another version are drawn anew

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
# Fill an ellipse or a polygon of the unit square (x right, y down) with a colour.
Pen = Callable[[str, list[tuple[float, float]], Colour], None]


@dataclass(frozen=True)
class StreetScenes:
    """Where `write_street_scenes` has put what it wrote; the test part is None if none was asked for."""

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

    A folder that holds the same scenes already is left as it is.

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
    canvas = Image.new("RGB", (width * _OVERSAMPLE, height * _OVERSAMPLE))
    # As large as the canvas: PIL also fills the pixels that an outline touches, which at the final size
    # would make a mask half a pixel larger on each side than its object is in the picture.
    owner = Image.new("L", canvas.size, 0)  # 255 objects; a scene has 4 rows of 8 at most
    horizon = height * rng.uniform(0.30, 0.40)
    _background(canvas, horizon * _OVERSAMPLE, rng)
    things = sorted(_crowd(size, horizon, rng), key=lambda thing: thing[1][3])  # farther ones first
    draw, draw_owner = ImageDraw.Draw(canvas), ImageDraw.Draw(owner)
    for index, (category, box, colour, mirrored) in enumerate(things):

        def fill(
            kind: str,
            points: list[tuple[float, float]],
            colour: Colour,
            box: Box = box,
            mirrored: bool = mirrored,
            index: int = index,
        ) -> None:
            x1, y1, x2, y2 = (_OVERSAMPLE * side for side in box)
            placed = [(x1 + (1 - x if mirrored else x) * (x2 - x1), y1 + y * (y2 - y1)) for x, y in points]
            if kind == "ellipse":
                (left, top), (right, bottom) = placed
                placed = [(min(left, right), top), (max(left, right), bottom)]
            getattr(draw, kind)(placed, fill=colour)
            getattr(draw_owner, kind)(placed, fill=index + 1)

        _SHAPES[category](fill, colour)
    image = canvas.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.int16) + rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    middle = slice(_OVERSAMPLE // 2, None, _OVERSAMPLE)
    owners = np.asarray(owner)[middle, middle]
    return pixels.clip(0, 255).astype(np.uint8), owners, [thing[0] for thing in things]


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
    """What the folder's record says, or None where there is none that can be read."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _crowd(
    size: tuple[int, int], horizon: float, rng: np.random.Generator
) -> list[tuple[int, Box, Colour, bool]]:
    """Rows of one class each, standing on the ground: (category, box, colour, mirrored)."""
    height, width = size
    things: list[tuple[int, Box, Colour, bool]] = []
    for _ in range(rng.integers(3, 5)):
        category = int(rng.choice(len(CATEGORIES), p=[0.34, 0.12, 0.36, 0.09, 0.09]))
        tall, ratio, most = _SIZES[category]
        # Where the row stands decides its size: the nearer, the larger.
        depth = rng.uniform(0.12, 1.0)
        ground = horizon + depth * (height - horizon) * 0.97
        high = tall * height * (0.25 + 0.75 * depth)
        wide = high * ratio
        base = _paint(rng)  # look-alikes: what stands together has nearly one colour
        mirrored = bool(rng.random() < 0.5)
        x = rng.uniform(-0.1, 0.7) * width
        for _ in range(rng.integers(2, most + 1)):
            scale = rng.uniform(0.92, 1.08)
            y = ground + rng.uniform(-0.02, 0.02) * height
            box = (x, y - high * scale, x + wide * scale, y)
            if box[2] > 2 and box[0] < width - 2:
                things.append((category, box, _vary(base, rng), mirrored))
            x += wide * rng.uniform(0.62, 1.15)  # from overlapping to side by side
    return things


def _background(canvas: Image.Image, horizon: float, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    light = rng.uniform(0.75, 1.1)
    draw.rectangle((0, 0, width, horizon), fill=_shade((150, 185, 220), light))
    x = 0.0
    while x < width:  # buildings
        wide = rng.uniform(0.08, 0.2) * width
        tone = _shade((150, 140, 130), light * rng.uniform(0.75, 1.1))
        top = horizon * rng.uniform(0.05, 0.7)
        draw.rectangle((x, top, x + wide, horizon), fill=tone)
        step = max(6.0, 0.035 * width)
        for wx in np.arange(x + step / 2, x + wide - step / 2, step):
            for wy in np.arange(top + step / 2, horizon - step / 2, step):
                draw.rectangle((wx, wy, wx + step / 2.5, wy + step / 2), fill=_shade(tone, 0.72))
        x += wide
    draw.rectangle((0, horizon, width, height), fill=_shade((98, 98, 102), light))
    draw.rectangle((0, horizon, width, horizon + 0.06 * height), fill=_shade((150, 148, 142), light))
    centre = width * rng.uniform(0.35, 0.65)
    for k in range(6):  # lane markings towards the vanishing point
        near, far = 1 - k / 6.5, 1 - (k + 0.45) / 6.5
        ys = [horizon + (0.08 + 0.92 * t * t) * (height - horizon) for t in (near, far)]
        w = [0.012 * width * t for t in (near, far)]
        draw.polygon(
            [(centre - w[0], ys[0]), (centre + w[0], ys[0]), (centre + w[1], ys[1]), (centre - w[1], ys[1])],
            fill=_shade((205, 205, 195), light),
        )


def _paint(rng: np.random.Generator) -> Colour:
    paints: list[Colour] = [
        (178, 40, 40),
        (45, 75, 150),
        (225, 225, 225),
        (45, 45, 50),
        (60, 120, 75),
        (200, 160, 60),
        (120, 70, 130),
    ]
    return paints[rng.integers(len(paints))]


def _vary(colour: Colour, rng: np.random.Generator) -> Colour:
    return _shade(colour, rng.uniform(0.88, 1.1))


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (int(min(255, max(0, c * factor))) for c in colour)
    return r, g, b


_SKIN: Colour = (205, 165, 140)
_GLASS: Colour = (165, 195, 215)
_TYRE: Colour = (22, 22, 24)


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> list[tuple[float, float]]:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _person(fill: Pen, colour: Colour) -> None:
    fill("polygon", _rectangle(0.28, 0.55, 0.46, 1.0), _shade(colour, 0.5))
    fill("polygon", _rectangle(0.54, 0.55, 0.72, 1.0), _shade(colour, 0.5))
    fill("polygon", [(0.2, 0.2), (0.8, 0.2), (0.92, 0.58), (0.08, 0.58)], colour)
    fill("ellipse", [(0.3, 0.0), (0.7, 0.2)], _SKIN)


def _rider(fill: Pen, colour: Colour) -> None:
    for x in (0.0, 0.58):
        fill("ellipse", [(x, 0.62), (x + 0.42, 1.0)], _TYRE)
        fill("ellipse", [(x + 0.07, 0.69), (x + 0.35, 0.93)], (120, 120, 125))
    fill("polygon", [(0.2, 0.78), (0.45, 0.55), (0.78, 0.6), (0.8, 0.82)], _shade(colour, 0.6))
    fill("polygon", [(0.3, 0.2), (0.62, 0.2), (0.7, 0.6), (0.3, 0.62)], colour)
    fill("ellipse", [(0.34, 0.0), (0.62, 0.22)], _SKIN)


def _car(fill: Pen, colour: Colour) -> None:
    fill("polygon", [(0.2, 0.38), (0.32, 0.0), (0.72, 0.0), (0.88, 0.38)], colour)
    fill("polygon", [(0.27, 0.36), (0.36, 0.09), (0.5, 0.09), (0.5, 0.36)], _GLASS)
    fill("polygon", [(0.55, 0.36), (0.55, 0.09), (0.69, 0.09), (0.8, 0.36)], _GLASS)
    fill("polygon", [(0.0, 0.45), (0.06, 0.36), (0.94, 0.36), (1.0, 0.5), (1.0, 0.82), (0.0, 0.82)], colour)
    _wheels(fill, (0.12, 0.66), 0.2, 0.6)


def _truck(fill: Pen, colour: Colour) -> None:
    fill("polygon", _rectangle(0.0, 0.0, 0.68, 0.86), _shade(colour, 0.85))
    fill("polygon", [(0.7, 0.25), (0.9, 0.25), (1.0, 0.55), (1.0, 0.86), (0.7, 0.86)], colour)
    fill("polygon", [(0.76, 0.32), (0.88, 0.32), (0.95, 0.54), (0.76, 0.54)], _GLASS)
    _wheels(fill, (0.08, 0.42, 0.74), 0.17, 0.72)


def _bus(fill: Pen, colour: Colour) -> None:
    fill("polygon", _rectangle(0.0, 0.0, 1.0, 0.88), colour)
    for k in range(5):
        fill("polygon", _rectangle(0.05 + 0.185 * k, 0.14, 0.2 + 0.185 * k, 0.46), _GLASS)
    _wheels(fill, (0.14, 0.7), 0.15, 0.74)


def _wheels(fill: Pen, left: tuple[float, ...], wide: float, top: float) -> None:
    for x in left:
        fill("ellipse", [(x, top), (x + wide, 1.0)], _TYRE)


_SHAPES = (_person, _rider, _car, _truck, _bus)
# Height of a near one as a part of the image's, width / height, most in a row.
_SIZES = ((0.46, 0.36, 8), (0.44, 0.85, 5), (0.27, 1.95, 6), (0.44, 1.6, 3), (0.46, 2.0, 3))
