"""What a run leaves, tells and refuses beside its weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from rich.console import Console

from solo_attn.models import CheckpointError, load_model
from solo_attn.training import Config, ConfigError, TrainResult, UnfinishedError, compare, train
from solo_attn.training import module as training_module
from solo_attn.training.callbacks import BestCheckpoint, EpochBar

MakeConfig = Callable[..., Config]


def told(config: Config, folder: Path) -> str:
    console = Console(record=True, force_terminal=False, width=200)
    train(config, folder, console=console)
    return console.export_text()


def test_seconds_count_a_validation_once(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training_module.evaluate

    def slow(*args, **settings):
        time.sleep(1.0)
        return real(*args, **settings)

    monkeypatch.setattr(training_module, "evaluate", slow)
    for name, eval_every in (("between the epochs", 1), ("after the training", 100)):
        start = time.monotonic()
        result = train(config(epochs=1, eval_every=eval_every), tmp_path / name)
        wall = time.monotonic() - start
        assert 1.0 < result.seconds < wall, name


@pytest.mark.parametrize("eval_every", [2, 100])
def test_the_line_names_the_epoch_and_the_losses(config: MakeConfig, tmp_path: Path, eval_every: int) -> None:
    lines = told(config(epochs=2, eval_every=eval_every), tmp_path).splitlines()
    assert [line for line in lines if line.startswith("epoch 2  step 6  loss")]
    assert not [line for line in lines if line.startswith("epoch 3")]
    assert any("dice" in line and "AP50" in line for line in lines)


@pytest.mark.parametrize(("epochs", "shown"), [(None, "Epoch 0"), (3, "Epoch 0/2")])
def test_the_bar_names_the_last_epoch_where_there_is_one(epochs: int | None, shown: str) -> None:
    """With train.max_steps there is none; Lightning itself always counts to -1."""
    bar = EpochBar(epochs)
    bar._trainer = SimpleNamespace(max_epochs=-1)
    assert bar._get_train_description(0).strip() == shown


def test_the_bar_has_no_number_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: {"v_num": "mine", "loss": 1.0})
    assert EpochBar(1).get_metrics(None, None) == {"loss": 1.0}


def test_says_whether_it_begins_or_goes_on(config: MakeConfig, tmp_path: Path) -> None:
    assert "training: 6 images (0 without objects)" in told(config(max_steps=1), tmp_path)
    console = Console(record=True, force_terminal=False, width=200)
    train(config(max_steps=1), tmp_path, resume=True, console=console)
    assert f"continuing from {tmp_path / 'last.ckpt'}: 6 images" in console.export_text().replace("\n", "")


def test_says_that_the_time_was_up(config: MakeConfig, tmp_path: Path) -> None:
    assert "stopped after 1e-05 minutes" in told(config(epochs=50, max_minutes=1e-5), tmp_path)


def test_an_abandoned_start_leaves_no_lines_in_the_curve(config: MakeConfig, tmp_path: Path) -> None:
    train(config(max_steps=2), tmp_path)
    before = set((tmp_path / "tensorboard").glob("events*"))
    for checkpoint in tmp_path.glob("*.ckpt"):
        checkpoint.unlink()  # as if it had been killed before the first one
    train(config(max_steps=1, learning_rate=0.5), tmp_path)
    curve = json.loads((tmp_path / "result.json").read_text())["curve"]
    assert {row["step"] for row in curve if "train/lr" in row} == {0}
    assert before.isdisjoint((tmp_path / "tensorboard").glob("events*"))


def test_a_run_in_pieces_leaves_the_same_curve(config: MakeConfig, tmp_path: Path) -> None:
    """The losses of a piece's last step too."""
    settings = config(epochs=2)
    train(settings, tmp_path / "whole")
    pieces = 1
    while True:
        try:
            train(settings, tmp_path / "pieces", resume=True, deadline=0.0)
            break
        except UnfinishedError:
            pieces += 1
    assert pieces == 6  # one for each step
    curves = [
        json.loads((tmp_path / name / "result.json").read_text())["curve"] for name in ("whole", "pieces")
    ]
    assert curves[0] == curves[1]


def test_a_folder_that_is_no_run_keeps_its_files(config: MakeConfig, tmp_path: Path) -> None:
    mine = tmp_path / "csv" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("kept")
    train(config(max_steps=1), tmp_path)
    assert mine.read_text() == "kept"


def test_fewer_validation_images_than_devices(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one validation image for each of 4 devices, got 3"):
        train(config(devices=4), tmp_path)


def test_half_precision_of_a_cpu(config: MakeConfig, tmp_path: Path) -> None:
    """Lightning would take bfloat16 instead."""
    with pytest.raises(ConfigError, match="one that this machine has, bf16-mixed or 32-true, got 16-mixed"):
        train(config(precision="16-mixed"), tmp_path)


def test_a_truncated_image_is_found_before_training(config: MakeConfig, tmp_path: Path) -> None:
    from solo_attn.data import DatasetError, write_street_scenes

    scenes = write_street_scenes(tmp_path / "scenes", num_train=3, num_val=2, size=(64, 96), seed=1)
    settings = config()
    settings.data.train_images = str(scenes.train_images)
    settings.data.train_annotations = str(scenes.train_annotations)
    broken = sorted(scenes.train_images.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-500])
    with pytest.raises(DatasetError, match=broken.name):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_so_far_is_kept_where_lightnings_own_callback_keeps_it() -> None:
    """So that a checkpoint of either says it to the other."""
    settings = {"monitor": "val/ap", "mode": "max"}
    assert BestCheckpoint(**settings).state_key == ModelCheckpoint(**settings).state_key


def test_a_checkpoint_of_another_version(trained: TrainResult, tmp_path: Path) -> None:
    for place, key in (("model", "new_switch"), (None, "new_part")):
        checkpoint = torch.load(trained.last, weights_only=True)
        info = checkpoint["solo_attn"]
        (info if place is None else info[place])[key] = 1
        torch.save(checkpoint, tmp_path / "new.ckpt")
        with pytest.raises(CheckpointError, match=f"another version.*{key}"):
            load_model(tmp_path / "new.ckpt")


def test_compare_with_a_degenerate_box_and_other_workers(config: MakeConfig, tmp_path: Path) -> None:
    settings = config(max_steps=1)
    settings.data.on_degenerate = "skip"
    truth = json.loads(Path(settings.data.val_annotations).read_text())
    flat = {**truth["annotations"][0], "id": 10_000, "bbox": [5, 5, 0, 3]}
    truth["annotations"].append(flat)
    settings.data.val_annotations = str(tmp_path / "val.json")
    Path(settings.data.val_annotations).write_text(json.dumps(truth))
    found = compare(settings, [0], tmp_path / "out", ["SOLO"])
    assert {path.name for path in found.files} >= {"figure5.png", "tables.md"}
    settings.train.log_every = 7  # changes nothing that is computed: the finished run stands
    assert compare(settings, [0], tmp_path / "out", ["SOLO"]) == found
