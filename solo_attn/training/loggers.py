"""Lightning's loggers of a training, and its CSV file, which is read again at the end."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from .._utils.errors import MissingExtraError
from .config import Config

PROJECT = "solo-attn"  # the run's name in it is that of its folder


@contextmanager
def logging_to(config: Config, run_dir: Path) -> Iterator[list[Logger]]:
    """The loggers of ``train.logger``, closed at the end.

    Raises:
        MissingExtraError: their package is not installed.
    """
    kind = config.train.logger
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv", flush_logs_every_n_steps=1)]
    try:
        if kind == "tensorboard":
            loggers.insert(0, TensorBoardLogger(run_dir, name="", version="tensorboard"))
        elif kind == "wandb":
            loggers.append(WandbLogger(project=PROJECT, name=run_dir.name, save_dir=run_dir))
        elif kind == "mlflow":
            # A server's address, or a database of the run's own: mlflow no longer writes files alone.
            uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.absolute() / 'mlflow.db'}"
            loggers.append(MLFlowLogger(PROJECT, run_name=run_dir.name, tracking_uri=uri))
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"train: expected {kind} to be installed for train.logger={kind}; run: pip install {kind}"
        ) from error
    failed = True
    try:
        for logger in loggers:
            if isinstance(logger, (WandbLogger, MLFlowLogger)):
                logger.log_hyperparams(config.as_dict())
        yield loggers
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):  # else the next training would be logged into this run
                logger.experiment.finish(exit_code=int(failed))


def logged(run_dir: Path) -> list[dict[str, float]]:
    """The logged values by step; each resumed run has written its own CSV file.

    The first training step is 0, and a validation has the number of steps done before it.
    """
    files = sorted(run_dir.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:]))
    rows: list[dict[str, float]] = []
    for file in files:
        with open(file, newline="", encoding="utf-8") as opened:
            new = [
                {key: float(f"{float(value):.5g}") for key, value in row.items() if value}
                for row in csv.DictReader(opened)
            ]
        # What came after the last checkpoint was done twice: the second time counts.
        validation = min((row["step"] for row in new if "train/lr" not in row), default=inf)
        step = min((row["step"] for row in new if "train/lr" in row), default=validation)
        rows = [
            row
            for row in rows
            if (row["step"] < step if "train/lr" in row else row["step"] <= step and row["step"] < validation)
        ] + new
    return rows
