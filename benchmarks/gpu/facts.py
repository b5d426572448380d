"""Facts, each kept as soon as it is known, and steps that cost no more than their own time.

A file of facts is JSON, one to a line, only ever added to: whatever ends a process, and whenever, the lines
before stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POISONED = (
    3  # exit status of a step that a CUDA error ended: what it has not done yet goes on in a new process
)


@dataclass(frozen=True)
class Facts:
    """A file of facts."""

    path: Path

    def add(self, **fact: Any) -> None:
        """Keep one. Several processes may at the same time: a line is written at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(fact) + "\n"
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":  # after a line that was cut short
                line = "\n" + line
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)

    def read(self) -> list[dict[str, Any]]:
        """All of them, but lines that were cut short."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def keys(self, step: str) -> set[str]:
        """What a step has found or failed at."""
        return {fact["key"] for fact in self.read() if fact.get("step") == step and "key" in fact}

    def done(self) -> set[str]:
        """Steps that came to their end."""
        return {fact["step"] for fact in self.read() if fact.get("status") == "done"}


@dataclass(frozen=True)
class Job:
    """What a step works with.

    Attributes:
        step: its name.
        facts: where it keeps what it finds.
        dry: tiny sizes on the CPU.
    """

    step: str
    facts: Facts
    dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def keep(self, key: str, find: Callable[[], dict[str, Any]]) -> None:
        """Keep what ``find`` finds, or how it failed, unless that is known from before.

        Raises:
            SystemExit: the GPU takes no more work from this process.
        """
        if key in self.facts.keys(self.step):
            return
        started = time.monotonic()
        try:
            found = find()
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        self.facts.add(step=self.step, key=key, **found, took=round(time.monotonic() - started, 3))
        if "failed" in found and not self.dry and _poisoned():
            raise SystemExit(POISONED)


def _poisoned() -> bool:
    import torch

    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run_step(facts: Facts, step: str, command: Sequence[str], seconds: float, log: Path) -> str:
    """Run a step's process, with all that it starts, for so many seconds at most; keep how it ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    status = "cut off"
    while (left := seconds - (time.monotonic() - started)) > 0:
        with log.open("a") as said:
            process = subprocess.Popen(
                command, stdout=said, stderr=said, start_new_session=True, preexec_fn=_die_with_parent
            )
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                break
            finally:
                with contextlib.suppress(ProcessLookupError):  # what it started may still hang
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        status = "done" if code == 0 else f"failed with status {code}"
        if code != POISONED:
            break
    facts.add(step=step, status=status, seconds=round(time.monotonic() - started, 1))
    return status


def run_steps(
    facts: Facts, steps: Sequence[tuple[str, float, Sequence[str]]], seconds: float, log: Path
) -> list[str]:
    """Run (name, seconds, command) one after the other; what did not come to its end, in words.

    Steps that are done are not run again. One that has no time left is named, and not begun.
    """
    end = time.monotonic() + seconds
    unfinished = []
    for step, most, command in steps:
        if step in facts.done():
            continue
        left = min(most, end - time.monotonic())
        status = "no time was left" if left < 1 else run_step(facts, step, command, left, log)
        print(f"{step}: {status}", flush=True)
        if status != "done":
            unfinished.append(f"{step}: {status}")
    return unfinished


def log_of(facts: Facts) -> Path:
    """Where steps write what they have to say."""
    return facts.path.with_suffix(".log")


class Recorder:
    """A plugin of pytest: each test's outcome is a fact."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called when a part of a test is over; of set up and tear down only what is not well counts."""
        if report.when != "call" and report.passed:
            return
        more = {} if report.passed else {"said": str(report.longrepr)[-1500:]}
        self.job.facts.add(step=self.job.step, key=report.nodeid, outcome=report.outcome, **more)


def interrupted(signum: int, frame: Any) -> None:
    """Leave on SIGTERM as on Ctrl-C: what was started ends too."""
    sys.exit(128 + signum)
