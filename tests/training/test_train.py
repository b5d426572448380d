from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer

from solo_attn.models import build_solo, load_model
from solo_attn.training import Config, ConfigError, SOLODataModule, TrainingError, TrainResult, train
from solo_attn.training import module as module_file

MakeConfig = Callable[..., Config]


def weights(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def assert_same_run(whole: TrainResult, other: TrainResult) -> None:
    """The same to the last bit, what was validated and saved on the way included."""
    assert (other.steps, other.metrics) == (whole.steps, whole.metrics)
    assert_same_weights(whole.run_dir, other.run_dir)
    assert (whole.best is None) == (other.best is None)
    if whole.best is not None and other.best is not None:
        first, second = (torch.load(path, weights_only=True) for path in (whole.best, other.best))
        assert first["global_step"] == second["global_step"]
        different = [
            name for name, w in first["state_dict"].items() if not torch.equal(w, second["state_dict"][name])
        ]
        assert not different


def curve(result: TrainResult) -> list[dict[str, float]]:
    return json.loads((result.run_dir / "result.json").read_text())["curve"]


def rows(run_dir: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for file in sorted(run_dir.glob("csv/version_*/metrics.csv")):
        with open(file, newline="") as opened:
            found += list(csv.DictReader(opened))
    return found


def test_leaves_what_it_says(trained: TrainResult) -> None:
    names = {path.name for path in trained.run_dir.iterdir()}
    assert {"config.yaml", "last.ckpt", "best.ckpt", "tensorboard", "csv", "curve.png"} <= names
    assert not [name for name in names if ".tmp" in name]
    assert trained.steps == 6
    assert 0 <= trained.metrics.ap <= 1
    logged = rows(trained.run_dir)
    for key in ("train/loss", "train/loss_category", "train/loss_mask", "train/dice", "train/lr"):
        assert sum(bool(row.get(key)) for row in logged) == 6, key
    assert sum(bool(row.get("val/ap")) for row in logged) == 2
    first = next(row for row in logged if row["train/loss_mask"])
    assert float(first["train/loss_mask"]) == pytest.approx(3 * float(first["train/dice"]), rel=1e-6)
    # 2 warm-up steps from a third: the first step has a third of 0.01.
    assert float(first["train/lr"]) == pytest.approx(0.01 / 3)


def test_refuses_to_overwrite_a_run(trained: TrainResult, config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
        train(config(), trained.run_dir)


def test_refuses_to_resume_with_other_settings(trained: TrainResult, config: MakeConfig) -> None:
    """Each setting in a line of its own, and no more than eight."""
    changed: dict[str, Any] = {"learning_rate": 0.5, "seed": 4, "ema": 0.9, "log_every": 7}
    with pytest.raises(ConfigError) as caught:
        train(config(**changed), trained.run_dir, resume=True)
    assert str(caught.value).splitlines()[1:] == [
        "  train.learning_rate: 0.01 -> 0.5",
        "  train.ema: null -> 0.9",
        "  train.seed: 0 -> 4",
    ]
    changed |= {"gamma": 0.2, "momentum": 0.8, "schedule": "cosine", "weight_decay": 0.0, "warmup_ratio": 0.5}
    with pytest.raises(ConfigError) as caught:
        train(config(**changed, gate_rate=1.0), trained.run_dir, resume=True)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (10, "  and 1 more")


def test_a_finished_run_is_only_validated(trained: TrainResult, config: MakeConfig, tmp_path: Path) -> None:
    run_dir = shutil.copytree(trained.run_dir, tmp_path / "run")
    again = train(config(), run_dir, resume=True)
    assert (again.steps, again.metrics) == (trained.steps, trained.metrics)
    assert curve(again) == curve(trained)
    assert [row["step"] for row in curve(again) if "val/ap" in row] == [3, 6]


def test_a_validation_has_the_number_of_steps_done(config: MakeConfig, tmp_path: Path) -> None:
    """Where a run ends inside an epoch that is not validated, and where it is resumed behind its end."""
    for _ in range(2):
        result = train(config(max_steps=2, eval_every=9), tmp_path, resume=True)
        assert [(row["step"], "val/ap" in row) for row in curve(result)] == [
            (0, False),
            (1, False),
            (2, True),
        ]
    logged = [(row["epoch"], row["step"]) for row in rows(tmp_path) if row["val/ap"]]
    assert [(float(epoch), int(step)) for epoch, step in logged] == [(0, 2)] * 2


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors may catch it and tidy up."""


@pytest.mark.parametrize(
    ("settings", "at_step", "workers"),
    [
        ({"epochs": 4, "eval_every": 2}, 7, 1),
        ({"epochs": 3, "checkpoint_steps": 1, "accumulate": 2}, 3, 0),
        ({"max_steps": 7, "checkpoint_steps": 2}, 5, 1),
        ({"max_steps": 5, "eval_every": 2, "accumulate": 2}, 3, 0),
    ],
    ids=["after an epoch", "inside an epoch", "by steps", "by steps, after an epoch without validation"],
)
def test_resumed_is_bitwise_the_same(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    at_step: int,
    workers: int,
) -> None:
    settings = config(**settings)
    settings.data.scale_jitter, settings.data.colour = [0.8, 1.2], 0.3
    settings.model.min_size = [48, 64]
    whole = train(settings, tmp_path / "whole")

    settings.data.workers = workers
    real = module_file.SOLOModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == at_step:
            raise Killed
        return real(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "training_step", step)
    with pytest.raises(Killed):
        train(settings, tmp_path / "broken")
    monkeypatch.undo()
    torch.rand(17)  # another process would have another random state
    resumed = train(settings, tmp_path / "broken", resume=True)

    assert_same_run(whole, resumed)
    assert curve(whole) == curve(resumed)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 3, "checkpoint_steps": 3},
        {"epochs": 3, "checkpoint_steps": 1, "accumulate": 2},
        {"max_steps": 7, "checkpoint_steps": 1},
    ],
    ids=str,
)
def test_killed_in_validations_is_bitwise_the_same(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Its epoch's last step would be a checkpoint, and neither the step nor the validation may be lost."""
    settings = config(**settings)
    whole = train(settings, tmp_path / "whole")
    first, second, *_ = [int(row["step"]) for row in curve(whole) if "val/ap" in row]
    real = module_file.SOLOModule.on_validation_epoch_start
    for killed_at in (first, first, second):

        def start(self: Any, step: int = killed_at) -> None:
            if self.global_step == step:
                raise Killed
            real(self)

        monkeypatch.setattr(module_file.SOLOModule, "on_validation_epoch_start", start)
        with pytest.raises(Killed):
            train(settings, tmp_path / "broken", resume=True)
    monkeypatch.undo()
    resumed = train(settings, tmp_path / "broken", resume=True)
    assert_same_run(whole, resumed)
    assert curve(whole) == curve(resumed)


def test_killed_within_accumulated_batches_is_bitwise_the_same(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after it was resumed: the step before, once saved, is not saved again with half a step."""
    settings = config(epochs=2, batch_size=1, accumulate=3, checkpoint_steps=1)
    whole = train(settings, tmp_path / "whole")
    real = module_file.SOLOModule.training_step
    for batches in (4, 5):

        def step(self: Any, batch: Any, batch_idx: int, stop: int = batches) -> torch.Tensor:
            if self.datamodule.batches_done == stop:
                raise Killed
            return real(self, batch, batch_idx)

        monkeypatch.setattr(module_file.SOLOModule, "training_step", step)
        with pytest.raises(Killed):
            train(settings, tmp_path / "broken", resume=True)
    monkeypatch.undo()
    assert_same_run(whole, train(settings, tmp_path / "broken", resume=True))


@pytest.mark.parametrize(
    ("settings", "batches", "stops"),
    [
        ({"epochs": 3}, 4, 4),
        ({"epochs": 3, "accumulate": 2}, 4, 3),  # not between the two batches of a step
        ({"epochs": 3, "accumulate": 2, "eval_every": 2}, 6, 4),
        ({"max_steps": 7, "checkpoint_steps": 2}, 5, 5),
    ],
    ids=["inside an epoch", "inside a step", "after an epoch", "by steps"],
)
def test_stopped_by_minutes_and_resumed_is_bitwise_the_same(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    batches: int,
    stops: int,
) -> None:
    """Twice: at ``batches``, and before it went on from there."""
    settings = config(**settings)
    whole = train(settings, tmp_path / "whole")
    done = 0
    real = module_file.SOLOModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal done
        done = self.datamodule.batches_done + 1
        return real(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "training_step", step)
    monkeypatch.setattr(Timer, "time_elapsed", lambda timer, stage="train": 90.0 if done >= batches else 0.0)
    settings.train.max_minutes = 1.0
    stopped = train(settings, tmp_path / "broken")
    assert stopped.steps == stops
    assert torch.load(stopped.last, weights_only=True)["global_step"] == stops
    assert train(settings, tmp_path / "broken", resume=True).steps == stops
    settings.train.max_minutes = None
    assert_same_run(whole, train(settings, tmp_path / "broken", resume=True))


def test_kill_9_leaves_a_loadable_checkpoint(config: MakeConfig, tmp_path: Path) -> None:
    """A real process, killed in the midst of saving after every step, and resumed."""
    settings = config(max_steps=12, checkpoint_steps=1, eval_every=1000)
    settings.save(tmp_path / "c.yaml")
    last = tmp_path / "run" / "last.ckpt"
    command = [sys.executable, "-m", "solo_attn", "train"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, info = load_model(last)
    assert info.class_names
    done = torch.load(last, weights_only=True)["global_step"]
    assert 0 < done < 12
    settings.train.checkpoint_steps = None  # free to change
    result = train(settings, tmp_path / "run", resume=True)
    assert result.steps == torch.load(last, weights_only=True)["global_step"] == 12


def test_time_budget(config: MakeConfig, tmp_path: Path) -> None:
    result = train(config(epochs=1000, max_minutes=1.5 / 60), tmp_path)
    assert 0 < result.steps < 3000
    assert torch.load(result.last, weights_only=True)["global_step"] == result.steps
    assert result.metrics.ap >= 0


def test_loss_that_is_not_finite(config: MakeConfig, tmp_path: Path) -> None:
    settings = config(learning_rate=1e30, warmup_steps=0, clip_norm=None, epochs=20)
    with pytest.raises(TrainingError, match=r"finite loss at step \d+, got .* with id \d+, \d+; try a lower"):
        train(settings, tmp_path)


def test_other_precision_and_optimizer(config: MakeConfig, tmp_path: Path) -> None:
    result = train(config(precision="bf16-mixed", optimizer="adamw", schedule="cosine", epochs=1), tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in weights(result.run_dir).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"val_images": ""}}, "data.val_images to be a path"),
        ({"data": {"scale_jitter": [1.0]}}, "data.scale_jitter to be 2 finite numbers > 0 or null"),
        ({"model": {"head_channels": 33}}, "head_channels to be a multiple of 32"),
        ({"train": {"accelerator": "cuda", "devices": 64}}, "64 device"),
    ],
)
def test_bad_settings(config: MakeConfig, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = config().as_dict()
    for section, items in change.items():
        values[section] |= items
    with pytest.raises(ConfigError) as caught:
        train(Config.from_dict(values), tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "last.ckpt").exists()


DDP = """
import json, sys
from pathlib import Path
import solo_attn.training.module as module
from solo_attn.training import load_config, train

real = module.evaluate
def spy(coco, results, **settings):
    seen = sorted(json.dumps([r["image_id"], r["bbox"]]) for r in results)
    Path(sys.argv[2], "seen.json").write_text(json.dumps(seen))
    return real(coco, results, **settings)
module.evaluate = spy
train(load_config(sys.argv[1]), sys.argv[2])
"""


def first_images(annotations: Path, count: int, out: Path) -> str:
    truth = json.loads(annotations.read_text())
    ids = [image["id"] for image in truth["images"][:count]]
    truth["images"] = truth["images"][:count]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    out.write_text(json.dumps(truth))
    return str(out)


def test_two_processes(config: MakeConfig, tmp_path: Path) -> None:
    """A step goes along the mean of the ranks' gradients, and each validation image is seen once."""
    settings = config(epochs=1, batch_size=1, devices=2, momentum=0.0, weight_decay=0.0, clip_norm=None)
    settings.model.attention = "cosine"  # gains and offsets have a rate of their own
    settings.data.flip = 0.0
    settings.data.train_annotations = first_images(
        Path(settings.data.train_annotations), 2, tmp_path / "two.json"
    )
    settings.model.score_threshold = settings.model.final_score_threshold = 0.0
    settings.model.mask_threshold = 1e-4  # masks begin at a probability of 0.01
    settings.model.max_detections = 5
    settings.save(tmp_path / "two.yaml")
    (tmp_path / "ddp.py").write_text(DDP)
    subprocess.run(
        [sys.executable, str(tmp_path / "ddp.py"), str(tmp_path / "two.yaml"), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
    )
    seen = json.loads((tmp_path / "two" / "seen.json").read_text())
    images = [json.loads(entry)[0] for entry in seen]
    assert [images.count(image) for image in set(images)] == [5, 5, 5]

    data = SOLODataModule(settings)
    data.setup("fit")
    pl.seed_everything(settings.train.seed, verbose=False)
    model = build_solo(data.train_set.num_classes, **settings.as_dict()["model"])
    for image, target in (data.train_set[0], data.train_set[1]):
        sum(model([image], [target]).values()).backward()
    after = weights(tmp_path / "two")
    rate = settings.train.learning_rate / 3  # the warm-up's first step
    moved = 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        expected = parameter.detach() - rate * parameter.grad / 2
        torch.testing.assert_close(after[f"model.{name}"], expected, rtol=1e-5, atol=1e-6)
        moved = max(moved, (rate * parameter.grad).abs().max().item())
    assert moved > 1e-4
