"""From an mmdetection checkpoint to one's own classes: converted, and trained on with `train.init_from`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tiny_runs import tiny_config

from benchmarks.peers.loading import need

need("mmdet")

from mmdet_models import CLASSES, config, detector, save  # noqa: E402

from solo_attn.interop.mmdet import convert_checkpoint  # noqa: E402
from solo_attn.interop.mmdet.weights import own_name  # noqa: E402
from solo_attn.models.checkpoint import read_checkpoint  # noqa: E402
from solo_attn.training import Config, train  # noqa: E402

HEAD = {"feat_channels": 32, "stacked_convs": 1, "num_grids": [8, 6, 4, 3, 2]}
STEPS = 50
MINE = ["car", "lorry"]  # one of CLASSES and one that it does not have


def of_converted(folder: Path, steps: int, **train_settings: Any) -> Config:
    """A training with the model settings that the converted model has."""
    settings = tiny_config(folder, max_steps=steps, epochs=99, eval_every=99, **train_settings).as_dict()
    settings["model"] |= {"norm": "frozen_bn", "coords": "inclusive", "attention": None}
    return Config.from_dict(settings)


def with_classes(annotations: str, names: list[str]) -> None:
    """The scenes with these classes: objects of the first keep theirs, all others are of the second."""
    path = Path(annotations)
    content = json.loads(path.read_text())
    kept = {c["id"] for c in content["categories"] if c["name"] == names[0]}
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    for one in content["annotations"]:
        one["category_id"] = 1 if one["category_id"] in kept else 2
    path.write_text(json.dumps(content))


def last_loss(run: Path) -> float:
    """Mean of the last ten steps."""
    curve = json.loads((run / "result.json").read_text())["curve"]
    return fmean([row["train/loss"] for row in curve if "train/loss" in row][-10:])


@pytest.mark.slow
def test_a_published_model_learns_other_classes_sooner_than_from_scratch(tmp_path: Path) -> None:
    """mmdetection's weights are made by a short training on scenes of its five classes, under its names."""
    settings = config(18, fpn=32, **HEAD)
    model = detector(settings)
    convert_checkpoint(save(model, settings, tmp_path / "random.pth"), tmp_path / "random.safetensors")
    first = of_converted(tmp_path / "theirs", STEPS + 10, init_from=str(tmp_path / "random.safetensors"))
    train(first, tmp_path / "trained")
    weights, info = read_checkpoint(tmp_path / "trained" / "last.ckpt")
    assert set(info.class_names) == set(CLASSES)
    named = {name: weights.get(own_name(name), x) for name, x in model.state_dict().items()}
    published = save(model, settings, tmp_path / "published.pth", state_dict=named)

    mine = of_converted(tmp_path / "mine", STEPS)
    for file in (mine.data.train_annotations, mine.data.val_annotations):
        with_classes(file, MINE)
    convert_checkpoint(published, tmp_path / "solo.safetensors")
    losses = {}
    for name, start in (("scratch", None), ("published", str(tmp_path / "solo.safetensors"))):
        chosen = mine.model_copy(update={"train": mine.train.model_copy(update={"init_from": start})})
        train(chosen, tmp_path / name)
        losses[name] = last_loss(tmp_path / name)
    assert losses["published"] < 0.9 * losses["scratch"], losses
    with_car = read_checkpoint(tmp_path / "published" / "last.ckpt")[1].class_names
    assert with_car == MINE
