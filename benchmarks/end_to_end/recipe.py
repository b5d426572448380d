"""The effect of each part of the recipe for nuclei: it is trained again with one thing changed at a time.

python -m benchmarks.end_to_end.recipe runs/recipe

All is measured on those validation images that are one tile: an object has its cells in one place there,
which `solo_attn.evaluation.find_errors` needs to say where the recipe itself loses objects, and prediction
takes seconds. The test images are not read. Trainings that ``runs/recipe`` holds are not made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from solo_attn._utils.environment import environment
from solo_attn.data import CocoInstances, eval_transforms
from solo_attn.evaluation import find_errors
from solo_attn.models import load_model
from solo_attn.training import Config, load_config, train
from solo_attn.training.compare import last_losses
from solo_attn.training.train import RESULT

from ..report.stored import CPU, RESULTS

CONFIG = "configs/paper_nuclei_small.yaml"
RECIPE = "the recipe"
CHANGES: dict[str, tuple[str, ...]] = {
    RECIPE: (),
    "another seed": ("train.seed=1",),
    "a third seed": ("train.seed=2",),
    "weights not averaged": ("train.ema=null",),
    "each image once an epoch": ("data.sample_power=0",),
    "slivers at a crop's border stay objects": ("data.min_area=1",),
    "no quarter turns": ("data.rotate90=false",),
    "one scale in training": ("data.scale_jitter=[1.5, 1.5]",),
    "at the picture's own scale": (
        "data.crop_size=256", "data.scale_jitter=[0.7, 1.4]", "model.min_size=256", "model.max_size=256",
    ),
    "levels that do not overlap": (
        "model.scale_ranges=[[1, 24], [24, 48], [48, 96], [96, 192], [192, 2048]]",
    ),
    "objects pasted into half of the images": ("data.copy_paste=0.5",),
    "steps of the learning rate in place of a cosine": ("train.schedule=step",),
    "gradients of two batches in a step, twice the images": ("train.accumulate=2", "train.epochs=4"),
    "the backbone learns too, at a fifth of the rate": ("model.freeze=0", "train.backbone_rate=0.2"),
    "twice as long": ("train.max_steps=600", "train.epochs=4"),
    "twice as long, ended by the first validation without a better AP": (
        "train.max_steps=600", "train.epochs=4", "train.eval_every=1", "train.patience=1",
    ),
    "whole images, flipped and turned only, features cached": (
        "train.cache_features=8", "data.scale_jitter=null", "data.crop_size=null", "data.colour=0",
        "model.resize_in_training=true",
    ),
}  # fmt: skip


def changed(changes: tuple[str, ...]) -> Config:
    """The recipe with ``changes``, without test images."""
    return load_config(CONFIG, ["data.test_images=''", "data.test_annotations=''", *changes])


def one_tile(config: Config, file: Path) -> int:
    """Write the annotations of those validation images that are one tile; how many images they are of."""
    content = json.loads(Path(config.data.val_annotations).read_text(encoding="utf-8"))
    tile = config.model.tile
    images = [image for image in content["images"] if image["height"] == image["width"] == tile]
    ids = {image["id"] for image in images}
    annotations = [one for one in content["annotations"] if one["image_id"] in ids]
    file.write_text(json.dumps({**content, "images": images, "annotations": annotations}), encoding="utf-8")
    return len(images)


def run(folder: Path, changes: tuple[str, ...], annotations: Path) -> dict[str, Any]:
    """Train unless it is done; what is kept of it."""
    if not (folder / RESULT).exists():
        config = changed(changes)
        config.data.val_annotations = str(annotations)
        train(config, folder, resume=True)
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    metrics = {key: result["metrics"][key] for key in ("ap", "ap50", "ap75", "ar100")}
    kept = {key: result[key] for key in ("steps", "seconds", "environment")}
    return {"changes": list(changes), **metrics, **last_losses(result["curve"]), **kept}


def where_it_fails(checkpoint: Path, annotations: Path) -> dict[str, Any]:
    """Objects missed by reason, and AP with perfect parts."""
    model, info = load_model(checkpoint)
    config = Config.from_dict(info.config)
    dataset = CocoInstances(config.data.val_images, annotations, eval_transforms(), on_degenerate="skip")
    report, _ = find_errors(model, dataset, max_detections=config.train.eval_max_detections)
    found = report.as_dict()
    return {
        **{key: found[key] for key in ("objects", "missed_by_reason", "false_positives_by_kind")},
        **{
            name: {"ap": metrics.ap, "ap50": metrics.ap50}
            for name, metrics in (
                ("as it is", report.metrics),
                ("perfect masks", report.perfect_masks),
                ("perfect scores", report.perfect_scores),
            )
        },
    }


def main(folder: Path) -> None:
    """Train what is not trained yet, and store all."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: f"{number:02d}" for number, name in enumerate(CHANGES)}
    annotations = folder / "one_tile.json"
    images = one_tile(changed(CHANGES[RECIPE]), annotations)
    rows = {name: run(folder / names[name], changes, annotations) for name, changes in CHANGES.items()}
    found = {
        "config": CONFIG,
        "environment": environment(),
        "images": images,
        "rows": rows,
        "errors": where_it_fails(folder / names[RECIPE] / "last.ckpt", annotations),
    }
    (RESULTS / CPU / "recipe.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
