"""A small dataset in Cityscapes' layout, since Cityscapes itself may not be passed on.

python tests/helpers/small_cityscapes.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 256, 128
COLOURS = {"person": (200, 40, 60), "rider": (230, 120, 0), "car": (20, 30, 160), "truck": (0, 90, 90)}
COLOURS |= {"bus": (120, 0, 120), "bicycle": (110, 110, 20)}
CITIES = {"train": ("aachen", "ulm"), "val": ("lindau",)}


def street(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Objects as in a polygons.json, back to front: each may cover those before it and leave the frame."""
    horizon = int(rng.integers(40, 60))
    ground = [[-5, horizon], [WIDTH + 5, horizon], [WIDTH + 5, HEIGHT + 9], [-5, HEIGHT + 9]]
    objects = [
        {"label": "sky", "polygon": [[0, 0], [WIDTH, 0], [WIDTH, horizon], [0, horizon]]},
        {"label": "road", "polygon": ground},
        {"label": "cargroup", "polygon": around(rng, WIDTH - 20, horizon + 4, 60, 14)},
        {"label": "persongroup", "polygon": around(rng, 20, horizon + 2, 40, 16)},
    ]
    for _ in range(int(rng.integers(8, 14))):
        label = str(rng.choice(sorted(COLOURS)))
        tall = label in ("person", "rider")
        depth = rng.uniform(0.3, 1.3)
        size = (14 * depth, 44 * depth) if tall else (60 * depth, 34 * depth)
        x, y = rng.uniform(-10, WIDTH + 10), horizon + rng.uniform(0, 60)
        objects.append({"label": label, "polygon": around(rng, x, y, *size)})
        if label == "car":
            objects.append({"label": "license plate", "polygon": around(rng, x, y, 8, 4)})
    objects.append({"label": "pole", "polygon": [[100, -9], [103, -9], [103, 90], [100, 90]]})
    objects.append({"label": "person", "polygon": around(rng, 60, 60, 40, 40), "deleted": 1})
    return objects


def around(rng: np.random.Generator, x: float, y: float, width: float, height: float) -> list[list[int]]:
    """A polygon of whole numbers, as annotators click them, some of its parts thin."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 14))))
    reach = rng.uniform(0.6, 1.1, len(angles)) / 2
    points = zip(x + width * reach * np.cos(angles), y + height * reach * np.sin(angles), strict=True)
    return [[round(px), round(py)] for px, py in points]


def write(root: Path, num_train: int = 6, num_val: int = 3, seed: int = 0) -> Path:
    """leftImg8bit and gtFine with polygons.json."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", num_train), ("val", num_val)):
        for number in range(count):
            city = CITIES[split][number % len(CITIES[split])]
            stem = f"{city}_{number:06d}_000019"
            for kind in ("leftImg8bit", "gtFine"):
                (root / kind / split / city).mkdir(parents=True, exist_ok=True)
            objects = street(rng)
            content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
            path = root / "gtFine" / split / city / f"{stem}_gtFine_polygons.json"
            path.write_text(json.dumps(content), encoding="utf-8")
            image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90))
            pen = ImageDraw.Draw(image)
            for found in objects:
                if not found.get("deleted"):
                    colour = COLOURS.get(found["label"], (130, 150, 170))
                    fill = np.clip(colour + rng.integers(-20, 21, 3), 0, 255)
                    pen.polygon([tuple(p) for p in found["polygon"]], fill=tuple(fill))
            image.save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
    return root


if __name__ == "__main__":
    write(Path(sys.argv[1]))
