"""The runs of a comparison: which are finished, and training the others in turn or several at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .._utils.signals import SignalledError
from .._utils.text import below
from .callbacks import UnfinishedError
from .config import Config, ConfigError, changes, differences
from .parallel import train_in_processes
from .resume import FREE
from .train import RESULT, train
from .worker import ended_by


@dataclass(frozen=True)
class Run:
    """A system with a seed.

    Attributes:
        system: its name in the tables.
        folder: of the run.
        config: what is trained.
    """

    system: str
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        """System and seed."""
        return f"{self.system}, seed {self.config.train.seed}"

    @property
    def done(self) -> bool:
        """Whether it is finished, or has had all the minutes that it may have."""
        if not (self.folder / RESULT).exists():
            return False
        result = self._stored()
        if not result.get("stopped", False):
            return True
        most = self.config.train.max_minutes
        return most is not None and most <= result["config"]["train"]["max_minutes"]

    def result(self) -> dict[str, Any]:
        """What `train` stored of it.

        Raises:
            ConfigError: it was trained with other settings.
        """
        result = self._stored()
        before = Config.from_dict(result["config"], str(self.folder / RESULT))
        if keys := [key for key in differences(before, self.config) if key not in FREE]:
            raise ConfigError(
                f"compare: expected the settings that {self.folder} was trained with, got others "
                f"(old -> new):{below(changes(before, self.config, keys))}\n"
                f"name another folder with --out or remove {self.folder.parents[1]}"
            )
        return result

    def summary(self) -> str:
        """ "AP 12.3  AP50 34.5 in 67 s", of the test images if there are any; no AP without objects."""
        result = self._stored()
        metrics = result["test_metrics"] or result["metrics"]
        values = [
            f"{name} {100 * metrics[key]:.1f}"
            for name, key in {"AP": "ap", "AP50": "ap50"}.items()
            if metrics[key] >= 0
        ]
        return f"{'  '.join(values) or 'trained'} in {result['seconds']:.0f} s"

    def _stored(self) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        return stored


def finish(runs: Sequence[Run], jobs: int, deadline: float | None, console: Console) -> None:
    """Train what is not finished, so many at a time.

    Args:
        runs: in the order in which they begin.
        jobs: 1 trains in this process, more in processes of their own where as many runs are left.
        deadline: of `time.monotonic`; at least one run makes a step.
        console: where progress goes.

    Raises:
        ConfigError: a finished run had other settings.
        UnfinishedError: the deadline came first.
        Exception: whatever a run raises, see `train`.
    """
    left = [run for run in runs if not run.done]
    if min(jobs, len(left)) > 1:
        for run in runs:
            if run not in left:
                _show_done(run, console)
        train_in_processes(left, jobs, deadline, console)
        return
    trained = False
    for run in runs:
        if run.done:  # now: another process may have finished it
            _show_done(run, console)
            continue
        # A call however short makes one step at least: repeated, it comes to an end.
        if trained and deadline is not None and time.monotonic() >= deadline:
            raise UnfinishedError("compare: not begun")
        trained = True
        console.print(f"{run.name}: training", highlight=False, markup=False)
        try:
            train(run.config, run.folder, resume=True, deadline=deadline, console=console)
        except SignalledError as error:  # says how `solo-attn train` continues
            raise ended_by(error.signum) from error


def _show_done(run: Run, console: Console) -> None:
    run.result()
    console.print(f"{run.name}: done before", highlight=False, markup=False)
