"""A training that a signal ends is saved, with a message on how to continue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from .._utils.signals import Noted, SignalledError, name_of
from .callbacks import SaveAndLeave


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Let `KeyboardInterrupt` out, with its signal: Lightning makes an exit with status 1 of it."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


class StopOnSignal(SaveAndLeave):
    """Saves and ends a training after SIGTERM or SIGINT, between two optimizer steps; a second one ends it.

    In the last step of an epoch, or in its validation, which cannot be resumed, it ends after that
    validation, where the epoch is saved. Before the first step and behind the last one it ends at the next
    batch.

    Args:
        checkpoint: file to save.
        console: where it says that a validation comes first.
        listens: False where several processes train together: each would save at a different moment, and
            Lightning stops them all.

    Attributes:
        begun: whether Lightning has loaded the checkpoint that it continues from.
    """

    console: Console
    listens: bool
    begun: bool

    def __init__(self, checkpoint: Path, console: Console, listens: bool) -> None:
        super().__init__(checkpoint)
        self.console, self.listens, self.begun = console, listens, False
        self._noted, self._told = Noted(), False

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the handlers: Lightning has set its own by now."""
        self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where there is no sanity check."""
        self._begin()

    def _begin(self) -> None:
        self.begun = True
        if self.listens:
            self._noted.listen()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where there is nothing but a validation."""
        self._begin()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """End within a validation that no checkpoint comes after; else say what is waited for."""
        if not self.due(trainer):
            return
        if trainer.sanity_checking or trainer.state.fn == TrainerFn.VALIDATING:
            self.leave(trainer)
        if not self._told:
            self.console.print("ending after this validation; once more ends it at once", highlight=False)
        self._told = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where the signal came in its last batch."""
        if self.due(trainer) and trainer.state.fn == TrainerFn.VALIDATING:
            self.leave(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End after the last epoch, which has been saved: a test may come."""
        if self.due(trainer):
            self.leave(trainer)

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether a signal came."""
        return self._noted.signum is not None

    def leave(self, trainer: pl.Trainer) -> NoReturn:
        """Raise `SignalledError`."""
        signum = self._noted.signum
        assert signum is not None
        there = (
            f"it goes on from {self.checkpoint} with --resume"
            if self.checkpoint.exists()
            else "nothing is saved"
        )
        raise SignalledError(
            f"train: ended by {name_of(signum)} at step {trainer.global_step}; {there}", signum
        )

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Listen no longer."""
        self._noted.stop()

    def teardown(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Listen no longer."""
        self._noted.stop()
