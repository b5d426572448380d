"""Every stored number by which this library is slower, larger or worse, found by rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from solo_attn.bench import FLOOR
from solo_attn.evaluation import METRICS

from ..end_to_end.jobs import why_failed
from ..end_to_end.scale_points import OURS
from . import gpu_section, speed, stored
from .comparisons import ATTENTION, DATA
from .scaling import FIRST_RESULT
from .stored import per_cent, table

Loss = list[str]  # what, where, against, theirs, ours
HEAD = ["what", "where", "against", "theirs", "ours"]
OURS_END_TO_END = ("fast", "fast, compiled")
# Ours: with other input, by another interface, in new memory.
OTHER_FORMS = ("of bits", "drop-in", FIRST_RESULT)

SCALE_NUMBERS: tuple[tuple[str, int, Callable[[dict[str, Any]], float], Callable[[float], str]], ...] = (
    ("dice loss", -1, lambda run: run["train/dice"], "{:.3f}".format),
    ("focal loss", -1, lambda run: run["train/loss_category"], "{:.3f}".format),
    ("AP50", 1, lambda run: run["metrics"]["ap50"], per_cent),
)


def timed(name: str, where: str, entry: dict[str, Any], ours: str) -> Iterator[Loss]:
    """The contenders of one benchmark that are faster than ours, or need less memory."""
    for other in entry["seconds"]:
        if other in (ours, FLOOR, *OTHER_FORMS):
            continue
        mine, their = speed.median(entry, ours), speed.median(entry, other)
        if their < mine:
            yield [name, where, other, f"{speed.milliseconds(their)} ms", f"{speed.milliseconds(mine)} ms"]
        memory = entry.get("memory", {})
        sizes = memory.get(other), memory.get(ours)
        if None not in sizes and sizes[0] < sizes[1]:
            yield [name, where, other, *(f"{size / 2**20:,.1f} MiB" for size in sizes)]


def ops(machine: str) -> Iterator[Loss]:
    """The losses of the ops and of the comparison with mmdetection, on a CPU or on a GPU."""
    for half in ("ops", "mmdet"):
        for entry in (stored.kept(half, machine) or {"benchmarks": {}})["benchmarks"].values():
            direction = ", backward" if entry.get("direction") == "backward" else ""
            yield from timed(f"{entry['op']}: {entry['what']}{direction}", machine, entry, entry["ours"])
    for case in (stored.kept("gpu", machine) or {"cases": []})["cases"]:
        yield from timed(gpu_section.named(case), machine, case, gpu_section.ours_of(case))


def growth(machine: str) -> Iterator[Loss]:
    """The losses at each size of what grows, where both ran."""
    for axis in (stored.kept("scale", machine) or {"axes": {}})["axes"].values():
        ran = [row for row in axis["rows"] if "out_of" not in row]
        for size in dict.fromkeys(row["size"] for row in ran if row["contender"] == OURS):
            same = {row["contender"]: row for row in ran if row["size"] == size}
            entry = {
                "seconds": {name: {"median": row["seconds"]} for name, row in same.items()},
                "memory": {name: row["peak_bytes"] for name, row in same.items()},
            }
            yield from timed(f"{axis['what']}: {size:,} {axis['unit']}", machine, entry, OURS)


def end_to_end(machine: str) -> Iterator[Loss]:
    """Each of our contenders against each dense one of the same task, and ours that failed."""
    rows = (stored.kept("end_to_end", machine) or {"rows": []})["rows"]
    for mine in rows:
        if mine["contender"] not in OURS_END_TO_END:
            continue
        work = f"{mine['what']}, batch {mine['batch']}, {mine['dtype']}: {mine['contender']}"
        if "failed" in mine:
            yield [work, machine, "–", "–", why_failed(mine)]
            continue
        for other in rows:
            same = all(other[key] == mine[key] for key in ("what", "batch", "dtype"))
            if not same or other["contender"] in OURS_END_TO_END or "failed" in other:
                continue
            speeds = other["images_per_second"], mine["images_per_second"]
            if speeds[0] > speeds[1]:
                yield [work, machine, other["contender"], *(f"{x:.3g} images/s" for x in speeds)]
            peaks = other["peak_bytes"], mine["peak_bytes"]
            if None not in peaks and peaks[0] < peaks[1]:
                yield [work, machine, other["contender"], *(f"{x / 2**20:,.0f} MiB" for x in peaks)]


def learned(machine: str) -> Iterator[Loss]:
    """Means over the seeds in which attention with its defaults is below another system."""
    for name in ("demo", *(f"comparison_{name}" for name in DATA)):
        found = stored.kept(name, machine)
        systems = found["summary"]["systems"] if found else {}
        for other in systems if ATTENTION in systems else ():
            for metric in METRICS:
                their, mine = (systems[system]["mean"][metric] for system in (other, ATTENTION))
                if None not in (their, mine) and mine < their:
                    count = len(systems[ATTENTION]["seeds"])
                    what = f"{name.removeprefix('comparison_')}, {count} seed(s): {ATTENTION}, {metric}"
                    yield [what, machine, other, per_cent(their), per_cent(mine)]


def scales(machine: str) -> Iterator[Loss]:
    """Numbers in which the default scale of the attention is worse than another, or than no attention."""
    found = stored.kept("attention_scale", machine) or {}
    for other in found:
        for name, sign, of, shown in SCALE_NUMBERS:
            their, mine = (of(found[scale]) for scale in (other, "cosine"))
            if sign * mine < sign * their:
                yield [f"first steps with scale cosine: {name}", machine, other, shown(their), shown(mine)]


def losses() -> list[Loss]:
    """All losses."""
    kinds = (ops, growth, end_to_end, learned, scales)
    return [loss for machine in stored.machines() for kind in kinds for loss in kind(machine)]


def where_it_loses() -> str:
    """The section."""
    found = losses()
    return table(HEAD, found, words=3) if found else "In nothing that was measured."
