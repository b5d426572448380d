"""The generated parts of docs/speed.md."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, product
from typing import Any

from ..end_to_end.jobs import BATCHES, DTYPES, WHAT, job_name, why_failed
from . import scaling, speed, stored
from .comparisons import DATA
from .gpu_section import gpu_section
from .profile_section import profile
from .stored import CPU, measured_on, table

GPU_FILES = ("gpu", "end_to_end", *(f"comparison_{name}" for name in DATA))


def measured_where() -> str:
    """Machine and commit of both halves of the benchmarks."""
    halves = (("ops", "the ops"), ("mmdet", "what is compared with mmdetection 3.3.0"))
    told = ((what, stored.kept(name)) for name, what in halves)
    return "; ".join(
        f"{what} {measured_on(found['environment']) if found else 'not yet'}" for what, found in told
    )


def beside_others() -> str:
    """This library compared with others, and with the floor."""
    memory = speed.memory_line(stored.kept)
    remarks = f"Peak memory beyond the inputs: {memory}.\n\n" if memory else ""
    plot = "![How many times as fast as plain PyTorch and torch.compile each op is](images/speed.svg)"
    return (
        f"{speed.speed_table(stored.kept)}\n\n{remarks}"
        f"{plot if stored.kept('ops') else 'The ops have not been measured yet.'}\n\n"
        f"{speed.HOW} {speed.how_quiet(stored.kept)} Measured: {measured_where()}."
    )


def ops() -> str:
    """Each op compared with plain PyTorch, torch.compile and the floor."""
    if not stored.kept("ops"):
        return "Not measured yet."
    return (
        f"{speed.op_table(stored.kept)}\n\n"
        f"{speed.HOW} MiB: peak memory beyond the inputs. Measured: {measured_where()}."
    )


def shown(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """One contender's numbers, and its speed relative to the dense one."""
    if "failed" in row:
        return [row["contender"], why_failed(row), "–", "–", "–"]
    ratio = "–"
    if "failed" not in base:
        ratio = speed.times(row["images_per_second"] / base["images_per_second"])
    peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}"
    median = speed.milliseconds(row["seconds"]["median"])
    return [row["contender"], f"{row['images_per_second']:.3g}", median, ratio, peak]


def end_to_end_of(machine: str, found: dict[str, Any]) -> str:
    """One machine's table; "fast" is this library, "dense" makes every mask of every cell."""
    rows = []
    for _, group in groupby(found["rows"], lambda row: (row["what"], row["batch"], row["dtype"])):
        same = list(group)
        base = next((row for row in same if row["contender"] == "dense"), {"failed": "not run"})
        rows += [[f"{row['what']}, batch {row['batch']}, {row['dtype']}", *shown(row, base)] for row in same]
    head = ["work", "contender", "images/s", "ms", "times dense", "MiB"]
    height, width = found["setting"]["size"]
    ran = {row["contender"] for row in found["rows"]}
    compiled = "".join(f'"{k}": {what}. ' for k, what in found.get("compiled", {}).items() if k in ran)
    proven = "; the compiled code was not compared" if compiled else ""
    if "dense, compiled" in found["proof"]["inference"]:
        proven = ", and so did what torch.compile made of them for that, or its rows say what it did"
    left_out = "; ".join(absent(found)) or "nothing"
    return (
        f"### {machine}\n\n{table(head, rows, words=2)}\n\n"
        f"{width} x {height}; before the timing, fast and dense had the same losses, gradients of "
        f"three weights, and instances at batch 1 in float32{proven}. "
        f"Convolutions of float32: {found.get('float32_convolutions', 'float32')}. MiB: peak beyond weights, "
        f"optimizer and batch. {compiled}Not measured: {left_out}. "
        f"{measured_on(found['environment'])}"
    )


def end_to_end() -> str:
    """Images a second and peak memory of the whole model."""
    found = ((machine, stored.kept("end_to_end", machine)) for machine in stored.machines())
    return "\n\n".join(end_to_end_of(*pair) for pair in found if pair[1]) or "Not measured yet."


def absent(found: dict[str, Any]) -> list[str]:
    """The races without rows in an end-to-end measurement, or without rows of torch.compile."""
    ran = {(row["what"], row["batch"], row["dtype"], row["contender"]) for row in found["rows"]}
    lines = []
    for race in product(WHAT, BATCHES, DTYPES):
        if any((*race, contender) not in ran for contender in ("fast", "dense")):
            lines.append(job_name((*race, False)))
        elif any((*race, f"{contender}, compiled") not in ran for contender in ("fast", "dense")):
            lines.append(job_name((*race, True)))
    return lines


def gpu() -> str:
    """Which measurements were made on which GPU."""
    parts = []
    for machine in stored.machines():
        there = [name for name in GPU_FILES if machine != CPU and stored.kept(name, machine)]
        if there:
            missing = [name for name in GPU_FILES if name not in there]
            parts.append(
                f"### {machine}\n\nStored: {', '.join(there)}. Not measured: {', '.join(missing) or 'none'}."
            )
        if "gpu" in there:
            parts.append(gpu_section(machine, stored.kept("gpu", machine)))
    return "\n\n".join(parts) or "**Nothing has been measured on a GPU.**"


BLOCKS: dict[str, Callable[[], str]] = {
    "beside_others": beside_others,
    "ops": ops,
    "threads": scaling.threads,
    "builds": scaling.builds,
    "growth": scaling.growth,
    "end_to_end": end_to_end,
    "profile": profile,
    "kept_memory": scaling.kept_memory,
    "huge_pages": scaling.huge_pages,
    "gpu": gpu,
}
