"""The peak memory of a prediction by tiles, of 10,000 x 10,000 pixels.

Weights are random, and such that masks vary and instances are found in every tile. The process that predicts
does nothing else, and its peak is that of all of it, Python and torch included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

import solo_attn
from solo_attn._utils.environment import environment
from solo_attn.models import ModelInfo, save_model, solo

from ..report.stored import CPU, RESULTS

SIDE, STORED = 10_000, 512
INPUT = 256  # pixels of a tile's side as the model sees it: a tiny model, since the picture is what is large
SETTINGS = {"tile": 1024, "tile_overlap": 128, "max_detections": 10}
GIB = 2**30


def write_model(path: Path) -> None:
    torch.manual_seed(0)
    model = solo(2, backbone="resnet18", head_channels=64, num_convs=1, min_size=INPUT, max_size=INPUT)
    with torch.no_grad():
        model.head.category_output.weight.normal_(0, 0.3)
        model.head.category_output.bias.fill_(-1)
        for output in model.head.mask_outputs:
            output.weight.normal_(0, 1)
            output.bias.fill_(0)
    save_model(model, ModelInfo(model.config, ["a", "b"], [1, 2], {}), path)


def write_image(path: Path, side: int) -> None:
    """A TIFF of smooth noise in tiles of `STORED` pixels, one of which is in memory at a time."""
    generator = np.random.default_rng(0)

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for _ in range((-(-side // STORED)) ** 2):
            coarse = torch.from_numpy(generator.random((1, 3, 12, 12), dtype=np.float32))
            fine = torch.nn.functional.interpolate(coarse, (STORED, STORED), mode="bicubic")
            yield (255 * fine[0].clamp(0, 1)).byte().permute(1, 2, 0).numpy()

    layout: Any = {"tile": (STORED, STORED), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype="uint8", **layout)


def predict(weights: Path, image: Path, threads: int) -> dict[str, Any]:
    """In a process of its own."""
    torch.set_num_threads(threads)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.monotonic()
    found = solo_attn.load(weights, "cpu", **SETTINGS)(image)
    features = found.to_geojson(0.3)["features"]
    return {
        "size": list(found.picture.size),
        "instances": len(found),
        "polygons": len(features),
        "seconds": round(time.monotonic() - began, 1),
        "before_gib": round(before / GIB, 3),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3),
    }


def measure(side: int, threads: int) -> dict[str, Any]:
    """Write a model and an image, and predict it."""
    where = environment("cpu") | {"threads": threads}
    with tempfile.TemporaryDirectory() as name:
        weights, image = Path(name, "a.safetensors"), Path(name, "image.tif")
        write_model(weights)
        write_image(image, side)
        command = [sys.executable, "-m", "benchmarks.end_to_end.large_image", "--predict", weights, image]
        command += ["--threads", threads]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"large_image: the prediction failed: {done.stderr}")
        return {
            "environment": where,
            "input": INPUT,
            "settings": SETTINGS,
            **json.loads(done.stdout.splitlines()[-1]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / CPU / "large_image.json")
    parser.add_argument("--predict", type=Path, nargs=2, metavar=("MODEL", "IMAGE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.predict:
        print(json.dumps(predict(*given.predict, given.threads)))
        return
    found = measure(given.side, given.threads)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
