"""Random COCO files, sane and broken fields mixed: ``python -m tools.coco_files --files 2000``.

What the check of a dataset refuses, it refuses with its one exception in one message. What it passes goes
through all that uses a dataset: inspection, a training step, an evaluation, a prediction of its images.
Nothing of that may raise, hang, or let the process grow. Hypothesis chooses the files, and repeats one that
fails.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from solo_attn._utils.environment import environment
from solo_attn.data import CocoInstances, DatasetError, collate, eval_transforms, train_transforms
from solo_attn.evaluation import evaluate_model
from solo_attn.inspection import contact_sheet, grid_setting, inspect_dataset, measure_objects
from solo_attn.models import ModelInfo, build_solo
from solo_attn.predictor import Predictor
from solo_attn.training import Config

from .forked import Child
from .fuzz import change
from .kill_test import TINY

HANG = 30  # seconds of CPU time for one file
GROWTH = 256 * 2**20  # bytes that the process may grow by after the first files
ROOM = 2 * 2**30  # bytes that it may allocate at all
WARM = 100  # files after which caches are full
INSTANCES = 5  # of an image, in predictions
KINDS = [("RGB", 1)] * 12 + [("L", 1), ("P", 1), ("RGBA", 1), ("I;16", 1), ("RGB", 6), ("RGB", 3)]


def polygon(rng: random.Random, height: int, width: int) -> list[list[float]]:
    """One or two parts, which may leave the image a little."""
    sides = (width, height)
    return [
        [round(rng.uniform(-2, sides[k % 2] + 2), 1) for k in range(2 * rng.randint(3, 6))]
        for _ in range(rng.randint(1, 2))
    ]


def run_lengths(rng: random.Random, height: int, width: int) -> dict[str, Any]:
    """A rectangle, compressed or not."""
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = rng.randrange(height), rng.randrange(width)
    mask[top : rng.randint(top + 1, height), left : rng.randint(left + 1, width)] = 1
    if rng.random() < 0.5:
        encoded: Any = coco_mask.encode(np.asfortranarray(mask))
        return {"size": [height, width], "counts": encoded["counts"].decode()}
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return {"size": [height, width], "counts": np.diff(ends, prepend=0).tolist()}


def box(rng: random.Random, shape: Any) -> list[float]:
    """Around a shape, seldom beside it."""
    if rng.random() < 0.02:
        return [rng.randint(-2, 9) for _ in range(4)]
    if isinstance(shape, dict):
        given = shape if isinstance(shape["counts"], str) else coco_mask.frPyObjects(shape, *shape["size"])
        return [float(v) for v in coco_mask.toBbox(given)]
    x, y = [v for part in shape for v in part[::2]], [v for part in shape for v in part[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


@st.composite
def coco_files(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, tuple[int, int, str, int]]]:
    """The content of a file, and its images: (height, width, mode, EXIF orientation) of each name."""
    rng = draw(st.randoms(use_true_random=True))  # hypothesis' own draws zeros and ends too often for shapes
    images = {
        name: (rng.randint(8, 40), rng.randint(8, 40), *rng.choice(KINDS))
        for name in ("a.png", "b.png", "c.png")[: draw(st.integers(1, 3))]
    }
    names = draw(st.lists(st.sampled_from(["cat", "dog", "行人", "a b"]), min_size=1, unique=True))
    content: dict[str, Any] = {
        "images": [
            {"id": k, "file_name": name, "height": size[0], "width": size[1]}
            for k, (name, size) in enumerate(images.items())
        ],
        "categories": [{"id": 3 * k, "name": name} for k, name in enumerate(names)],
        "annotations": [],
    }
    for k in range(rng.randint(0, 6)):
        entry = rng.choice(content["images"])
        shape = rng.choice([polygon, run_lengths])(rng, entry["height"], entry["width"])
        one = {"id": k, "image_id": entry["id"], "category_id": 3 * rng.randrange(len(names))}
        one |= {"segmentation": shape, "bbox": box(rng, shape), "iscrowd": int(rng.random() < 0.1)}
        content["annotations"].append({**one, "area": one["bbox"][2] * one["bbox"][3]})
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        change(rng, content)
    return content, images


def write(folder: Path, content: dict[str, Any], images: dict[str, tuple[int, int, str, int]]) -> Path:
    """The file, and its images beside it."""
    for name, (height, width, mode, orientation) in images.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = Image.effect_noise((width, height), 60)
        picture = Image.new(mode, (width, height)) if mode == "I;16" else pixels.convert(mode)
        picture.save(folder / name, exif=exif)
    path = folder / "set.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@cache
def predictor(classes: int) -> Predictor:
    """An untrained model that finds something everywhere."""
    torch.manual_seed(0)
    model = build_solo(classes, **{**TINY["model"], "max_detections": INSTANCES, "nms_pre": 20})
    names = [f"class {k}" for k in range(classes)]
    return Predictor(model, ModelInfo(model.config, names, list(range(classes)), {}))


def use(folder: Path, annotations: Path, skip: bool) -> str:
    """Check a file, and do with it all that is done with a dataset; how far it went."""
    how = "skip" if skip else "error"
    try:
        dataset = CocoInstances(folder, annotations, on_degenerate=how)
        dataset.check_images()
    except DatasetError as error:
        if len(str(error)) > 10_000 or "\x1b" in str(error):
            raise AssertionError(f"a message of {len(str(error))} characters") from error
        return "refused"
    if len(measure_objects(dataset).area):
        json.dumps(inspect_dataset(dataset, grid_setting(Config().as_dict()), keep_size=True).as_dict())
    contact_sheet(dataset, folder / "sheet.png")
    found = predictor(dataset.num_classes)
    varied = CocoInstances(folder, annotations, train_transforms(), on_degenerate=how)
    losses = found.model.train()(*collate([varied[k] for k in range(len(varied))]))
    loss = losses["loss_category"] + losses["loss_mask"]
    loss.backward()
    if not torch.isfinite(loss):
        raise AssertionError(f"a loss of {loss}")
    plain = CocoInstances(folder, annotations, eval_transforms(), on_degenerate=how)
    found.model.eval()
    evaluate_model(found.model, plain)
    for entry in dataset.coco.imgs.values():
        result = found(folder / entry["file_name"])
        json.dumps(result.to_geojson())
    return "used with objects" if dataset.summary.annotations else "used without objects"


def check_files(count: int, number: int, folder: Path) -> dict[str, Any]:
    """As many random files, from the seed ``number``; how many came how far, and the process's growth.

    The last file stays in ``folder``.

    Raises:
        AssertionError: the process grew, or whatever the first failing file raised, made small.
    """
    ends: Counter[str] = Counter()
    sizes: list[int] = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(coco_files(), st.booleans())
    def one(file: tuple[dict[str, Any], dict[str, tuple[int, int, str, int]]], skip: bool) -> None:
        for path in folder.iterdir():
            path.unlink()
        signal.setitimer(signal.ITIMER_PROF, HANG)
        ends[use(folder, write(folder, *file), skip)] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        sizes.append(_resident())

    before = signal.signal(signal.SIGPROF, _hangs)
    try:
        one()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    growth = max(sizes) - max(sizes[:WARM])
    if growth > GROWTH:
        raise AssertionError(f"the process grew by {growth / 2**20:.0f} MiB after the first {WARM} files")
    return {"files": sum(ends.values()), "ends": dict(ends), "growth": growth, "largest": max(sizes)}


def _hangs(*_: Any) -> None:
    raise AssertionError(f"no end within {HANG} seconds")


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    """Run the files in a child, which may crash."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="JSON file that receives the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, machine = time.monotonic(), environment("cpu")
    with tempfile.TemporaryDirectory() as place:
        folder, told = Path(place) / "files", Path(place) / "told.json"
        folder.mkdir()

        def run() -> int:
            told.write_text(json.dumps(check_files(options.files, options.seed, folder)))
            return 0

        end = Child(run, memory=ROOM).wait()
        if end.status:
            print(f"status {end.status}; the last file:\n{(folder / 'set.json').read_text()}\n{end.output}")
            return 1
        found = {**json.loads(told.read_text()), "memory_limit": ROOM, "hang_limit": HANG}
    found |= {"seconds": round(time.monotonic() - began), "environment": machine}
    print(json.dumps(found))
    if options.store is not None:
        options.store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
