"""The configuration for real data, on the data it is written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_coco import real_data

from solo_attn.training import load_config, train

CONFIG = Path(__file__).parents[2] / "configs" / "nuclei_small.yaml"


@pytest.mark.data
def test_nuclei_small(tmp_path: Path) -> None:
    """Its paths, sizes and limits fit: a few steps lower the loss of a few images."""
    images = real_data("dsb2018")
    for part, keep in (("train450", 4), ("val50", 1)):
        content = json.loads((images / f"instances_paper_{part}.json").read_text(encoding="utf-8"))
        by_size = sorted(content["images"], key=lambda image: image["width"] * image["height"])
        ids = {image["id"] for image in by_size[:keep]}
        content["images"] = [image for image in content["images"] if image["id"] in ids]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (tmp_path / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
    changes = [
        f"data.train_images={images / 'images_train'}",
        f"data.val_images={images / 'images_train'}",
        f"data.train_annotations={tmp_path / 'train450.json'}",
        f"data.val_annotations={tmp_path / 'val50.json'}",
        "data.test_images=''",
        "data.test_annotations=''",
        "data.workers=0",
        "train.max_steps=12",
        "train.warmup_steps=2",
        "train.log_every=1",
        "train.accelerator=cpu",
    ]
    result = train(load_config(CONFIG, changes), tmp_path / "run")
    assert result.steps == 12
    assert result.metrics.max_detections == 400
    curve = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["curve"]
    losses = [row["train/loss"] for row in curve if "train/loss" in row]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
