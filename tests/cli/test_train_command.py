"""``solo-attn train`` and ``solo-attn eval``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_line import run
from pycocotools.coco import COCO

from solo_attn.evaluation import evaluate
from solo_attn.training import Config, TrainResult

MakeConfig = Callable[..., Config]


def test_train(config: MakeConfig, tmp_path: Path) -> None:
    config().save(tmp_path / "c.yaml")
    code, output = run("train", tmp_path / "c.yaml", "train.epochs=1", "--out", tmp_path / "run")
    assert code == 0
    assert "Average Precision" in output
    assert "epoch 1" in output
    assert (tmp_path / "run" / "last.ckpt").exists()
    code, output = run("train", tmp_path / "c.yaml", "train.epochs=1", "--out", tmp_path / "run")
    assert code == 2
    assert "--resume" in output


def test_eval(trained: TrainResult, config: MakeConfig, tmp_path: Path) -> None:
    data = config().data
    out = tmp_path / "deep" / "results.json"
    where = ["--images", data.val_images, "--annotations", data.val_annotations]
    picture = tmp_path / "deeper" / "found.png"
    arguments = ["--out", out, "--picture", picture, "--device", "cpu"]
    code, output = run("eval", trained.last, *where, *arguments)
    assert code == 0
    assert picture.stat().st_size > 1000
    assert str(trained.metrics) in output
    results = json.loads(out.read_text())
    assert len(results) > 0
    COCO(data.val_annotations).loadRes(str(out))
    assert trained.metrics == evaluate(data.val_annotations, results)


def test_eval_errors(trained: TrainResult, config: MakeConfig, tmp_path: Path) -> None:
    data = config().data
    out = tmp_path / "results.json"
    where = ["--images", data.val_images, "--annotations", data.val_annotations, "--device", "cpu"]
    code, output = run("eval", trained.last, *where, "--errors", "--out", out)
    assert code == 0
    assert str(trained.metrics) in output
    assert "objects missed at IoU 0.5" in output
    stored = json.loads((tmp_path / "results.errors.json").read_text())
    assert stored["metrics"] == trained.metrics.as_dict() == evaluate(data.val_annotations, out).as_dict()
    annotations = json.loads(Path(data.val_annotations).read_text())["annotations"]
    assert stored["objects"] == len(annotations)
    assert sum(stored["missed_by_reason"].values()) == len(stored["missed"]) <= stored["objects"]
    assert {one["annotation_id"] for one in stored["missed"]} <= {one["id"] for one in annotations}
    assert sum(stored["false_positives_by_kind"].values()) == len(stored["false_positives"])
    assert (tmp_path / "results.errors.png").stat().st_size > 1000
    code, output = run("eval", trained.last, *where, "--errors", "--batch-size", 2)
    assert code == 2
    assert "expected --batch-size to be 1 with --errors, got 2" in output


def with_training_settings(checkpoint: Path, out: Path, settings: dict[str, Any]) -> Path:
    """A copy of the checkpoint that says it was trained with other settings."""
    content = torch.load(checkpoint, weights_only=True)
    content["solo_attn"]["config"] = settings
    torch.save(content, out)
    return out


def test_eval_counts_as_many_instances_as_the_training(
    trained: TrainResult, config: MakeConfig, tmp_path: Path
) -> None:
    data = config().data
    where = ["--images", data.val_images, "--annotations", data.val_annotations, "--device", "cpu"]
    other = with_training_settings(trained.last, tmp_path / "20.ckpt", {"train": {"eval_max_detections": 20}})
    unknown = with_training_settings(trained.last, tmp_path / "none.ckpt", {})
    for arguments, limit in [
        ([trained.last], 100),
        ([other], 20),
        ([other, "--max-detections", 15], 15),
        ([unknown], 100),
    ]:
        code, output = run("eval", *arguments, *where)
        assert code == 0
        assert f"maxDets={limit:>3d} ]" in output


def test_eval_refuses_other_categories(trained: TrainResult, config: MakeConfig, tmp_path: Path) -> None:
    data = config().data
    truth = json.loads(Path(data.val_annotations).read_text())
    for entry in truth["categories"]:
        entry["id"] += 100
    for entry in truth["annotations"]:
        entry["category_id"] += 100
    other = tmp_path / "other.json"
    other.write_text(json.dumps(truth))
    code, output = run("eval", trained.last, "--images", data.val_images, "--annotations", other)
    assert code == 2
    assert "to have the categories" in output
