"""How much other work a machine does, and races that go on until their medians stand still."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .timing import Race

BUSY = 0.3  # cores that others may keep busy
STEADY = 0.05  # spread of the medians of a race's last batches
_BATCHES, _LAST = 8, 3


@dataclass(frozen=True)
class Quiet:
    """How quiet it was before a race.

    Attributes:
        busy: cores that were busy; None where the system does not say.
        waited: seconds of waiting for others to end.
    """

    busy: float | None
    waited: float


def busy_cores(seconds: float = 1.0) -> float | None:
    """How many cores are busy while this thread sleeps; None where only other systems than Linux know."""
    before = _used()
    if before is None:
        return None
    begin = time.perf_counter()
    time.sleep(seconds)
    after = _used()
    assert after is not None
    return (after - before) / (time.perf_counter() - begin)


def wait_until_quiet(most: float = 60.0, busy: float = BUSY) -> Quiet:
    """Wait until less than ``busy`` cores are busy, but no longer than ``most`` seconds."""
    begin = time.monotonic()
    while True:
        found = busy_cores()
        waited = time.monotonic() - begin
        if found is None or found < busy or waited >= most:
            return Quiet(found, waited if found is not None and waited > 2 else 0.0)


def run_until_steady(race: Race, rounds: int, within: float = STEADY) -> float:
    """Run a race in batches of ``rounds`` until the medians of its last three batches agree.

    Returns:
        The largest, over the contenders, of (highest - lowest) / middle median of the last three batches: at
        most ``within``, unless eight batches did not get there.
    """
    medians: list[dict[str, float]] = []
    while True:
        for _ in range(rounds):
            race.round()
        medians.append({name: median(seconds) for name, seconds in race.take_batch().items()})
        last = medians[-_LAST:]
        spread = max(
            (max(found) - min(found)) / median(found)
            for name in last[0]
            for found in [[batch[name] for batch in last]]
        )
        if len(medians) >= _LAST and (spread <= within or len(medians) == _BATCHES):
            return spread


def _used() -> float | None:
    """Seconds that all cores together have been busy since the system started."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _, _, *interrupts = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
