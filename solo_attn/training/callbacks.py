"""Lightning callbacks: checkpoints, the end of a training, log lines and the progress bar."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from rich.console import Console

from .._utils.errors import SoloAttnError

# Each warns of a deliberate choice of this package, which a user cannot change.
_CHOSEN = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The dirpath has changed from.*",
    r".*your dataloader is not resumable.*",
    r".*in eval mode at the start of training.*",
    r".*GPU available but not used.*",
    r".*No device id is provided via `init_process_group`.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*is deprecated.*LeafSpec.*",
    r".*Experiment logs directory .* exists.*",
    r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\).*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*could not find the monitored key.*",
)


class UnfinishedError(SoloAttnError, RuntimeError):
    """The time limit was reached before the work was done; the same call continues from what is stored."""


def between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a batch ended with an optimizer step and its epoch continues."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch


class LastCheckpoint(Checkpoint):
    """Writes a checkpoint after each epoch, every so many optimizer steps, and where the training is stopped.

    Only at moments from which Lightning resumes correctly: after an optimizer step inside an epoch, or after
    an epoch and its validation. Between accumulated batches it would lose their gradients. From a checkpoint
    of an epoch's last batch it resumes as if the epoch were both over and not over, and without its
    validation; from one of the end of an epoch that was cut short, as if the epoch were complete.

    Args:
        file: to be replaced each time.
        every: so many optimizer steps; None for epochs only.
    """

    file: Path
    every: int | None

    def __init__(self, file: Path, every: int | None) -> None:
        self.file, self.every = file, every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside an epoch."""
        due = self.every is not None and trainer.global_step % self.every == 0
        if (due or trainer.should_stop) and between_steps(trainer, batch_idx):
            trainer.save_checkpoint(self.file)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after an epoch."""
        if trainer.is_last_batch:
            trainer.save_checkpoint(self.file)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, for whole epochs only: a run that is stopped inside an epoch is validated once more."""

    @property
    def state_key(self) -> str:
        """Lightning's own: the best AP so far is found under it in checkpoints of both."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save it if it is better than those before."""
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where not every epoch is validated."""
        if trainer.is_last_batch:
            super().on_validation_end(trainer, pl_module)


class Average(WeightAveraging):
    """An exponential moving average of the weights, for validations and for `load_model` of a checkpoint.

    Checkpoints also hold the weights of the training itself, to resume from. After n steps the decay is at
    most (1 + n) / (10 + n), since short runs would otherwise end near their initial weights; source:
    tf.train.ExponentialMovingAverage (num_updates). Buffers are averaged too, integers are copied. It has to
    be the first callback: those after it may save.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: torch.Tensor, now: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
            if not averaged.is_floating_point():
                return now
            count = int(steps)
            return averaged.lerp(now, 1 - min(decay, (1 + count) / (10 + count)))

        super().__init__(avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the average on the weights' device: they are moved there later."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


class Patience(EarlyStopping):
    """Lightning's on validation AP, for whole epochs only; a run that it ended stays ended when resumed.

    Args:
        patience: validations in a row that are no better than the best before.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/ap", mode="max", patience=patience, check_on_train_epoch_end=False)

    @property
    def over(self) -> bool:
        """Whether the patience is exhausted."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make no further step."""
        trainer.should_stop |= self.over

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count it, except for the extra validation of a run that was stopped inside an epoch."""
        if trainer.is_last_batch:
            super().on_validation_end(trainer, pl_module)


class Limits(Callback):
    """Ends a training after its steps or its minutes, followed by a validation.

    Not Lightning's ``max_epochs``, which counts an epoch that was cut short as a whole one, nor its
    ``max_steps``, with which an epoch that was not validated is resumed in its middle.

    Args:
        steps: optimizer steps of the whole run.
        minutes: of ``timer``, or None.
        timer: measures the training, including the time before a resume; comes before this one in the
            callbacks.
    """

    steps: int
    minutes: float | None
    timer: Timer

    def __init__(self, steps: int, minutes: float | None, timer: Timer) -> None:
        self.steps, self.minutes, self.timer = steps, minutes, timer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make no step if none is left."""
        self._look(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two optimizer steps or at the end of an epoch."""
        if trainer.is_last_batch or between_steps(trainer, batch_idx):
            self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        over = trainer.global_step >= self.steps
        if self.minutes is not None:
            # Clocks differ, and a process that continued alone would wait for the others.
            over |= trainer.strategy.broadcast(self.timer.time_elapsed("train") >= 60 * self.minutes)
        trainer.should_stop |= over


class SaveAndLeave(Callback):
    """Once `due`, saves between two optimizer steps and ends the training by `leave`, without validating it.

    Args:
        checkpoint: file to save.
    """

    checkpoint: Path
    saved: bool

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.saved = checkpoint, False

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether the training is to end."""
        raise NotImplementedError

    def leave(self, trainer: pl.Trainer) -> NoReturn:
        """Raise what ends it."""
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at a moment inside an epoch; see `LastCheckpoint`."""
        if self.due(trainer) and between_steps(trainer, batch_idx):
            trainer.save_checkpoint(self.checkpoint)
            self.saved = True

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Leave after that: not before the step's losses are logged."""
        if self.saved:
            self.leave(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same after an epoch, which has been saved."""
        if self.due(trainer):
            self.leave(trainer)


class StopAt(SaveAndLeave):
    """Leaves a training at a moment by `UnfinishedError`.

    Args:
        deadline: of `time.monotonic`; at least one step is made, so that repeated calls always make progress.
        checkpoint: file to save.
    """

    deadline: float
    first: int

    def __init__(self, deadline: float, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self.deadline, self.first = deadline, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step at which the run begins."""
        self.first = trainer.global_step

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether the deadline has passed and a step was made."""
        return trainer.global_step > self.first and time.monotonic() >= self.deadline

    def leave(self, trainer: pl.Trainer) -> NoReturn:
        """Raise `UnfinishedError`."""
        raise UnfinishedError(f"train: the time was over at step {trainer.global_step}; {self.checkpoint}")


class EpochBar(RichProgressBar):
    """Lightning's progress bar with the number of epochs, which it does not know: `Limits` ends them.

    Args:
        epochs: to show; None where steps are counted instead.
    """

    def __init__(self, epochs: int | None) -> None:
        super().__init__(leave=False)
        self.epochs = epochs

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Without Lightning's number of the run, which no command takes."""
        shown: dict[str, Any] = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's max_epochs is -1.
        last = "" if self.epochs is None else f"/{self.epochs - 1}"
        return super()._get_train_description(current_epoch).replace("/-2", last)


class EpochLines(Callback):
    """One line for each validation, which is also readable in a log file."""

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
        """Print a message, since Lightning ends an interrupted process silently."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            self.console.print("interrupted; last.ckpt has what was saved before", highlight=False)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's warnings about deliberate choices of this package."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in _CHOSEN:
            warnings.filterwarnings("ignore", message=pattern)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
