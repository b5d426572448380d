"""A training that a signal ends is saved, with a message on how to continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl

from .._utils.signals import Noted, SignalledError, name_of
from .callbacks import SaveAndLeave


class StopOnSignal(SaveAndLeave):
    """Saves and ends a training after SIGTERM or SIGINT, between two optimizer steps; a second one ends it.

    In a validation, which cannot be resumed, it ends at the next batch and leaves the checkpoint as it was.

    Args:
        checkpoint: file to save.
        listens: False where several processes train together: each would save at a different moment, and
            Lightning stops them all.

    Attributes:
        begun: whether Lightning has loaded the checkpoint that it continues from.
    """

    listens: bool
    begun: bool

    def __init__(self, checkpoint: Path, listens: bool) -> None:
        super().__init__(checkpoint)
        self.listens, self.begun = listens, False
        self._noted = Noted()

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

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """End inside a validation."""
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
