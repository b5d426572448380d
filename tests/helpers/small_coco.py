"""A small faultless COCO set that a test may spoil, and the way to the real images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tools.real_data import find

HEIGHT, WIDTH = 20, 30  # not square, so that mixing them up shows


def real_data(name: str) -> Path:
    """A folder of the real data, or skip the test."""
    folder = find(name)
    if folder is None:
        pytest.skip(f"no real data {name} (tools/real_data.py)")
    return folder.resolve()


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths, column by column, by a plain loop: shares nothing with pycocotools."""
    counts, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def block(x: int, y: int, width: int, height: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded: Any = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


@dataclass
class CocoSet:
    """Image 7 (a polygon, compressed and uncompressed runs, a crowd) and image 3 (nothing)."""

    folder: Path
    content: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.images, self.annotations = self.folder / "images", self.folder / "set.json"
        self.images.mkdir(parents=True)
        crowd = block(0, 0, 30, 2)
        shapes = [
            (11, 50, [4, 3, 9, 8], [[4, 3, 13, 3, 13, 11, 4, 11]], 0),
            (12, 20, [15, 5, 4, 6], compressed(block(15, 5, 4, 6)), 0),
            (13, 50, [20, 2, 8, 16], {"size": [HEIGHT, WIDTH], "counts": runs(block(20, 2, 8, 16))}, 0),
            (14, 20, [0, 0, 30, 2], {"size": [HEIGHT, WIDTH], "counts": runs(crowd)}, 1),
        ]
        self.content = {
            "images": [{"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in (7, 3)],
            "categories": [{"id": 50, "name": "fork"}, {"id": 20, "name": "cup"}],
            "annotations": [
                {"id": k, "image_id": 7, "category_id": c, "bbox": b, "segmentation": s, "iscrowd": w}
                | {"area": float(b[2] * b[3])}
                for k, c, b, s, w in shapes
            ],
        }
        rng = np.random.default_rng(0)
        for k in (7, 3):
            self.save(k, Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)))

    def save(self, image_id: int, image: Image.Image, **options: Any) -> Path:
        path = self.images / f"{image_id}.png"
        image.save(path, **options)
        return path

    def annotation(self, annotation_id: int) -> dict[str, Any]:
        return next(a for a in self.content["annotations"] if a["id"] == annotation_id)

    def write(self) -> tuple[Path, Path]:
        self.annotations.write_text(json.dumps(self.content), encoding="utf-8")
        return self.images, self.annotations
