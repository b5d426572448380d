"""Where a training is logged, extra callbacks, and its report."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

from benchmarks.peers.loading import need
from solo_attn._utils.errors import MissingExtraError
from solo_attn.training import Config, train
from solo_attn.training.loggers import logged

MakeConfig = Callable[..., Config]


class Counts(Callback):
    steps = 0

    def on_train_batch_end(self, *_: object) -> None:
        self.steps += 1


def test_callbacks_and_csv_alone(config: MakeConfig, tmp_path: Path) -> None:
    counts = Counts()
    train(config(max_steps=2, logger="csv"), tmp_path, callbacks=[counts])
    assert counts.steps == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"csv", "result.json", "curve.png", "report.html"}
    assert "tensorboard" not in names
    page = (tmp_path / "report.html").read_text()
    assert "Learning curve" in page
    assert "AP by class" in page
    train(config(max_steps=2, logger="tensorboard"), tmp_path, resume=True)  # a setting that may change


def test_the_log_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    """Steps that were done twice count as the later run has them; a validation has the steps before it."""

    def write(version: int, *rows: str) -> None:
        file = tmp_path / "csv" / f"version_{version}" / "metrics.csv"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join(("step,train/lr,val/ap", *rows)) + "\n")

    def told() -> list[tuple[float, str, float]]:
        return [(row["step"], *item) for row in logged(tmp_path) for item in row.items() if item[0] != "step"]

    lr, ap = "train/lr", "val/ap"
    assert logged(tmp_path) == []
    write(2, "0,1,", "1,2,", "2,,0.5", "2,3,", "3,4,", "4,,0.123456789")
    first = [(0, lr, 1), (1, lr, 2), (2, ap, 0.5), (2, lr, 3), (3, lr, 4), (4, ap, 0.12346)]
    assert told() == first
    write(10, "2,9,", "3,9,", "4,,0.7", "4,9,")  # from a checkpoint behind the validation of step 2
    assert told() == [*first[:3], (2, lr, 9), (3, lr, 9), (4, ap, 0.7), (4, lr, 9)]
    write(11, "4,,0.8")  # from one at the end of step 3, which validates again
    assert told() == [*first[:3], (2, lr, 9), (3, lr, 9), (4, ap, 0.8)]


@pytest.mark.slow
def test_wandb_offline(config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = need("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(config(max_steps=1, logger="wandb"), tmp_path / "run")
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"train/loss" in content
    assert b"learning_rate" in content
    assert wandb.run is None, "the next training of the process is a run of its own"


@pytest.mark.slow
def test_mlflow_in_a_database(config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(config(max_steps=1, logger="mlflow"), tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "run" / "mlflow.db")) as database:
        found = {key for (key,) in database.execute("select key from metrics")}
    assert found >= {"train/loss", "val/ap50"}


def test_a_logger_that_is_not_installed(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(MissingExtraError, match=r"train\.logger=wandb; run: pip install wandb"):
        train(config(max_steps=1, logger="wandb"), tmp_path)
