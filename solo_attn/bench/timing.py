"""Comparable times: contenders take turns in one process, and medians are compared."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from ..backends import release_memory

Contender = Callable[[], Any]

_SHORT = 0.02  # seconds; shorter runs are repeated several times in a row, as in real use
_IN_A_ROW = 3
_LONG = 50 * _SHORT  # what takes so long even with compiling and allocating is run only once before it counts
_LOOKS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one contender's runs.

    Attributes:
        median: half of the runs took less.
        low: a quarter took less.
        high: a quarter took more.
        runs: how many there were.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """The median of the runs, of which there is at least one."""
        low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
        return cls(median(seconds), low, high, len(seconds))

    def as_dict(self) -> dict[str, Any]:
        """The times as plain types, for `json`."""
        return asdict(self)


class Race:
    """Runs contenders in turn, so that other load on the machine affects all of them alike.

    The first run of each, which compiles and allocates, is not counted. Contenders that are about as fast as
    each other run equally often.

    Args:
        contenders: a name -> what is timed.
        device: where they run; on "cuda" CUDA events are what is read.
    """

    def __init__(self, contenders: Mapping[str, Contender], device: str = "cpu") -> None:
        self._contenders = dict(contenders)
        self._cuda = torch.device(device).type == "cuda"
        self._seconds: dict[str, list[float]] = {name: [] for name in contenders}
        self._first: dict[str, float] = {}  # what a run takes, about
        self._batched = dict.fromkeys(contenders, 0)  # runs that were in a batch
        for name, run in self._contenders.items():
            first = self._time(run)
            # The least of some: one run that the machine held up says nothing of the others.
            self._first[name] = first if first > _LONG else min(self._time(run) for _ in range(_LOOKS))

    def affordable(self, seconds: float, least: int = 3, most: int = 50) -> int:
        """How many rounds fit into ``seconds``, between ``least`` and ``most``."""
        once = sum(taken * self._in_a_row(name) for name, taken in self._first.items())
        return max(least, min(most, int(seconds / max(once, 1e-9))))

    def round(self) -> None:
        """Run each contender once; short ones, and those about as fast, several times after one more."""
        for name, run in self._contenders.items():
            taken = [self._time(run) for _ in range(self._in_a_row(name))]
            self._seconds[name] += taken[1:] or taken

    def times(self) -> dict[str, Times]:
        """The times of every contender, after at least one round."""
        return {name: Times.of(seconds) for name, seconds in self._seconds.items()}

    def take_batch(self) -> dict[str, list[float]]:
        """The seconds of every contender's runs since this was last asked for."""
        found = {name: seconds[self._batched[name] :] for name, seconds in self._seconds.items()}
        self._batched = {name: len(seconds) for name, seconds in self._seconds.items()}
        return found

    def _in_a_row(self, name: str) -> int:
        short = [seconds for seconds in self._first.values() if seconds < _SHORT]
        return 1 + _IN_A_ROW * (bool(short) and self._first[name] < max(_SHORT, 2 * max(short)))

    def _time(self, run: Contender) -> float:
        if not self._cuda:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000


def peak_memory(run: Contender, device: str = "cpu") -> int | None:
    """Bytes that ``run`` needs beyond what was there before, at their most; None where that cannot be read.

    On a CPU the growth of the process, its result included, which only Linux tells.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    # Memory that was freed but is still the process's would be used first, and not be seen.
    release_memory()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except (OSError, AttributeError):  # a kernel, or a C library, that does not have it
        return None
    before = _status("VmRSS")
    result = run()
    grown = _status("VmHWM") - before
    del result
    return max(0, grown)


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10
