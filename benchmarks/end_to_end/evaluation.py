"""Time and memory of an evaluation with masks as run lengths, and with bool masks encoded afterwards.

``python -m benchmarks.end_to_end.evaluation`` stores benchmarks/results/cpu/evaluation.json. Random weights
find 100 instances in each image, whose masks are neither empty nor full. Each way has a process of its own,
whose peak is that of all of it, and both must give the same results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from solo_attn._utils.environment import environment
from solo_attn.data import CocoInstances, eval_transforms
from solo_attn.evaluation import evaluate_model
from solo_attn.models import ModelInfo, load_model, save_model

from ..report.stored import CPU, RESULTS
from .large_image import GIB
from .model import NUM_CLASSES, Setting, images_of, model_of, set_candidates

SIZE, INSTANCES, IMAGES = (1024, 2048), 100, 40
MODEL = {
    "backbone": "resnet18",
    "head_channels": 64,
    "num_convs": 1,
    "nms_pre": 200,
    "max_detections": INSTANCES,
}
INPUT = (256, 512)  # what an image is resized to: what is measured is what comes after the model
WAYS = {"bool": False, "rle": True}


def write_data(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Images of smooth noise, whose ground truth is ten boxes each, and a model."""
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    height, width = size
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for k in range(1, count + 1):
        coarse = generator.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(
            folder / f"images/{k}.jpg"
        )
        images.append({"id": k, "file_name": f"{k}.jpg", "height": height, "width": width})
        for label in range(1, 11):
            x, y = generator.integers(0, (width // 2, height // 2)).tolist()
            w, h = width // 8, height // 4
            shape = {
                "bbox": [x, y, w, h],
                "area": w * h,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            entry = {
                "id": len(objects) + 1,
                "image_id": k,
                "category_id": 1 + label % NUM_CLASSES,
                "iscrowd": 0,
            }
            objects.append({**entry, **shape})
    ids = list(range(1, NUM_CLASSES + 1))
    names = [f"class {k}" for k in ids]
    categories = [{"id": k, "name": name} for k, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content), encoding="utf-8")
    setting = Setting(INPUT, 4 * INSTANCES, 0, {**MODEL, "final_score_threshold": 0.0})
    model = model_of(setting, "cpu").eval()
    set_candidates(model, images_of(setting, 1, "cpu"), setting.candidates)
    save_model(model, ModelInfo(model.config, names, ids, {}), folder / "model.ckpt")


def evaluate(folder: Path, rle: bool, threads: int) -> dict[str, Any]:
    """In a process of its own."""
    torch.set_num_threads(threads)
    model, _ = load_model(folder / "model.ckpt")
    if not rle:
        predict = model.predict
        model.predict = lambda images, rle: predict(images, rle=False)  # type: ignore[method-assign]
    dataset = CocoInstances(folder / "images", folder / "truth.json", eval_transforms())
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.monotonic()
    _, results = evaluate_model(model, dataset)
    seconds = time.monotonic() - began
    shapes = [{key: result[key] for key in ("image_id", "category_id", "segmentation")} for result in results]
    return {
        "instances": len(results),
        "seconds": round(seconds, 2),
        "before_gib": round(before / GIB, 3),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3),
        "results": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


def measure(count: int, threads: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Both ways, one after the other.

    Raises:
        RuntimeError: one failed, or their results differ.
    """
    where = environment("cpu") | {"threads": threads}
    found = {}
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), count, size)
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.end_to_end.evaluation", "--evaluate", name, way]
            done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"evaluation: {way} failed: {done.stderr}")
            found[way] = json.loads(done.stdout.splitlines()[-1])
    if len({one["results"] for one in found.values()}) > 1:
        raise RuntimeError("evaluation: expected the same results of both ways, got others")
    about = {"images": count, "size": size, "input": INPUT, "settings": MODEL}
    return {"environment": where, **about, "ways": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.evaluate:
        folder, way = given.evaluate
        print(json.dumps(evaluate(Path(folder), WAYS[way], given.threads)))
        return
    found = measure(given.images, given.threads)
    (RESULTS / CPU / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
