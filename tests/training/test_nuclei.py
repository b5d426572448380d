"""The configuration for real data, on the data it is written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solo_attn.training import load_config, train

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "dsb2018"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="dsb2018 is not beside the repository")
def test_nuclei_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths, sizes and limits fit: a few steps lower the loss of a few images."""
    for part, keep in (("train450", 4), ("val50", 1)):
        content = json.loads((DATA / f"instances_paper_{part}.json").read_text(encoding="utf-8"))
        by_size = sorted(content["images"], key=lambda image: image["width"] * image["height"])
        ids = {image["id"] for image in by_size[:keep]}
        content["images"] = [image for image in content["images"] if image["id"] in ids]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (tmp_path / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.chdir(ROOT)  # the configuration's paths are relative
    changes = [
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
    result = train(load_config("configs/nuclei_small.yaml", changes), tmp_path / "run")
    assert result.steps == 12
    assert result.metrics.max_detections == 400
    curve = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["curve"]
    losses = [row["train/loss"] for row in curve if "train/loss" in row]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
