"""What happens beside the steps of a training: its lines, its bar, its end at a deadline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console


class UnfinishedError(RuntimeError):
    """The time was over before the work was; what was done is kept, and the same call goes on."""


class StopAt(Callback):
    """Leaves a training at a moment, between two optimizer steps, without validating it.

    Args:
        deadline: of `time.monotonic`; at least one step is made, so that pieces however short come to an end.
        checkpoint: file to save.
    """

    def __init__(self, deadline: float, checkpoint: Path) -> None:
        self.deadline, self.checkpoint = deadline, checkpoint
        self.step = self.first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where it goes on from."""
        self.step = self.first = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save and raise `UnfinishedError` once the deadline is over, except at the end of an epoch.

        Lightning resumes a checkpoint of that moment as if the epoch were both over and not over: left once
        more in the next epoch, it would train past the last one.
        """
        # In the midst of accumulated batches a checkpoint would lose their gradients.
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        if stepped and not trainer.is_last_batch and time.monotonic() >= self.deadline:
            trainer.save_checkpoint(self.checkpoint)
            self._leave(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same after an epoch, which has been saved."""
        if trainer.global_step > self.first and time.monotonic() >= self.deadline:
            self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        raise UnfinishedError(f"train: the time was over at step {trainer.global_step}; {self.checkpoint}")


class EpochBar(RichProgressBar):
    """Lightning's bar, without the -1 that stands for "as many epochs as max_steps takes"."""

    def _get_train_description(self, current_epoch: int) -> str:
        return super()._get_train_description(current_epoch).replace("/-2", "")


class EpochLines(Callback):
    """One line for each validation, which stays readable in a log file too."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.losses: dict[str, float] = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the losses: a validation after the training begins with empty metrics."""
        self.losses = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print epoch, losses, and AP in per cent."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        logged = {**self.losses, **{k: float(v) for k, v in trainer.callback_metrics.items()}}
        losses = {"loss": "train/loss", "dice": "train/dice"}
        values = [f"{name} {logged[key]:.3f}" for name, key in losses.items() if key in logged]
        for name, key in {"AP": "val/ap", "AP50": "val/ap50"}.items():
            if logged.get(key, -1) >= 0:
                values.append(f"{name} {100 * logged[key]:.1f}")
        epoch = trainer.datamodule.epochs_begun  # type: ignore[attr-defined]
        self.console.print(f"epoch {epoch}  step {trainer.global_step}  {'  '.join(values)}", highlight=False)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Lightning ends an interrupted process without a word."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            self.console.print("interrupted; the same command with --resume goes on", highlight=False)
