"""How time and peak memory grow with masks, image, batch, candidates and objects: `make bench-scale`.

Each point is a forked process with a limit of memory and of time. A contender that runs out of one of them
has reached its end, which is stored, and is not run at larger sizes.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import torch
import typer

from solo_attn.bench import environment, peak_memory, wait_until_quiet
from tools.forked import CRASHED, Child, Ended

from ..peers.loading import peer
from ..report.stored import CPU, RESULTS
from .scale_points import AXES, MMDET, Axis, Run

MEMORY = 6 << 30  # bytes that a point may allocate
SECONDS = 40  # CPU time of a point, its inputs included
WHOLE = 440  # seconds after which no further point begins
_RUNS, _ENOUGH = 5, 1.0
FULL = re.compile(r"can't allocate memory|bad_alloc|MemoryError|[Cc]annot allocate memory|out of memory")
PROCESSOR_TIME = (-signal.SIGXCPU, -signal.SIGKILL)


def point(make: Callable[[int, bool], Run], size: int, threads: int, dry_run: bool) -> int:
    """In the child: the inputs, the peak memory of one run, the median of more; printed as JSON."""
    torch.set_num_threads(threads)
    run = make(size, dry_run)
    begin = time.perf_counter()
    peak = peak_memory(run)
    seconds = [time.perf_counter() - begin]
    if seconds[0] < SECONDS / 8:  # the first run counts only where there is no time for another
        seconds.clear()
        while len(seconds) < _RUNS and sum(seconds) < _ENOUGH:
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": median(seconds), "runs": len(seconds), "peak_bytes": peak}))
    return 0


def outcome(ended: Ended) -> dict[str, Any]:
    """A point's numbers, or the limit that it reached.

    Raises:
        RuntimeError: it failed in another way.
    """
    if ended.status == 0:
        found: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
        return found
    if ended.status in PROCESSOR_TIME and ended.seconds >= SECONDS - 1:
        return {"out_of": "time"}
    if FULL.search(ended.output) and ended.status in (CRASHED, -signal.SIGABRT):
        return {"out_of": "memory"}
    raise RuntimeError(f"scale: a point ended with status {ended.status}: {ended.output}")


def measure(axis: Axis, threads: int, dry_run: bool, until: float) -> list[dict[str, Any]]:
    """The rows of one axis, contenders in turn at each size; those after ``until`` (monotonic) say so."""
    rows: list[dict[str, Any]] = []
    left = dict(axis.makers)
    for size in axis.tiny if dry_run else axis.sizes:
        for name, make in list(left.items()):
            row: dict[str, Any] = {"contender": name, "size": size}
            if time.monotonic() > until:
                row["out_of"] = "the whole measurement's time"
            else:
                child = Child(lambda: point(make, size, threads, dry_run), seconds=SECONDS, memory=MEMORY)  # noqa: B023 - runs at once
                row |= outcome(child.wait())
            if "out_of" in row:
                del left[name]
            rows.append(row)
            typer.echo(f"{axis.what}: {row}")
    return rows


def main(
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
    dry_run: Annotated[bool, typer.Option(help="Tiny sizes, nothing stored.")] = False,
) -> None:
    """Measure every axis, and store scale.json."""
    torch.set_num_threads(threads)
    where, until = environment("cpu"), time.monotonic() + WHOLE
    if any(MMDET in axis.makers for axis in AXES.values()):
        peer("mmdet.models.layers")  # once, before the forks
    found: dict[str, Any] = {}
    for name, axis in AXES.items():
        busy = None if dry_run else wait_until_quiet(10).busy
        rows = measure(axis, threads, dry_run, until)
        found[name] = {"what": axis.what, "unit": axis.unit, "busy": busy, "rows": rows}
    if not dry_run:
        limits = {"memory_bytes": MEMORY, "processor_seconds": SECONDS}
        text = json.dumps({"environment": where, "limits": limits, "axes": found}, indent=1)
        (RESULTS / CPU / "scale.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
