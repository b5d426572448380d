"""Write what was measured into docs/results.md: part of `make results`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby, product
from typing import Any

from .. import ROOT
from ..end_to_end.jobs import BATCHES, DTYPES, WHAT, job_name, why_failed
from . import speed, stored
from .comparisons import DATA, comparisons, stored_ones
from .gpu_section import gpu_section
from .readme import measured_where
from .stored import CPU, measured_on, per_cent, table
from .where_it_loses import where_it_loses

PAGE = ROOT / "docs" / "results.md"
GPU_FILES = ("gpu", "end_to_end", *(f"comparison_{name}" for name in DATA))


def attention_scale() -> str:
    """Losses after the same few steps with each scale."""
    found = stored.kept("attention_scale")
    if not found:
        return "Not measured yet."
    rows = [
        [
            name,
            f"{run['train/dice']:.3f}",
            f"{run['train/loss_category']:.3f}",
            per_cent(run["metrics"]["ap50"]),
        ]
        for name, run in found.items()
    ]
    first = next(iter(found.values()))
    told = dict.fromkeys(measured_on(run["environment"]) for run in found.values())
    return (
        f"{table(['attention scale', 'dice loss', 'focal loss', 'AP50'], rows)}\n\n"
        f"{first['steps']} steps of `configs/nuclei_small.yaml` each, one seed; losses are means of the "
        f"last tenth. A dice loss near 1 means that no mask has been learned. {' '.join(told)}"
    )


def ops() -> str:
    """Each op against everything."""
    if not stored.kept("ops"):
        return "Not measured yet."
    return (
        f"{speed.op_table(stored.kept)}\n\n"
        f"{speed.HOW} MiB: peak memory beyond the inputs. Measured: {measured_where()}."
    )


def shown(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """One contender's numbers, and how many times as fast as the dense one it is."""
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
    proven = "; what torch.compile made was not compared" if compiled else ""
    if "dense, compiled" in found["proof"]["inference"]:
        proven = ", and so did what torch.compile made of them for that, or its rows say what it did"
    left_out = "; ".join(absent(found)) or "nothing"
    return (
        f"### {machine}\n\n{table(head, rows, words=2)}\n\n"
        f"{width} x {height}; before they were timed, fast and dense gave the same losses, gradients of "
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
    """The races that an end-to-end measurement has no rows of, or none with torch.compile."""
    ran = {(row["what"], row["batch"], row["dtype"], row["contender"]) for row in found["rows"]}
    lines = []
    for race in product(WHAT, BATCHES, DTYPES):
        if any((*race, contender) not in ran for contender in ("fast", "dense")):
            lines.append(job_name((*race, False)))
        elif any((*race, f"{contender}, compiled") not in ran for contender in ("fast", "dense")):
            lines.append(job_name((*race, True)))
    return lines


def gpu() -> str:
    """What ran on which GPU."""
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


def unmeasured() -> str:
    """What the stored files lack."""
    lines = [f"The paper's comparison on {words}." for name, words in DATA.items() if not stored_ones(name)]
    lines += [
        f"{row.work}, against {row.against}."
        for row, _, ratio in speed.compared(stored.kept)
        if math.isnan(ratio)
    ]
    machines = stored.machines()
    ends = {machine: found for machine in machines if (found := stored.kept("end_to_end", machine))}
    if not ends:
        lines.append("Training and inference end to end.")
    lines += [
        f"End to end, {machine}: {'; '.join(missing)}."
        for machine, found in ends.items()
        if (missing := absent(found))
    ]
    if not any(stored.kept(name, m) for m in machines if m != CPU for name in GPU_FILES):
        lines.append("Anything on a GPU: its kernels are tested for what they compute, not for speed.")
    return "\n".join(f"- {line}" for line in lines) or "- Of what this page has a place for: nothing."


BLOCKS: dict[str, Callable[[], str]] = {
    "comparisons": comparisons,
    "attention_scale": attention_scale,
    "ops": ops,
    "end_to_end": end_to_end,
    "gpu": gpu,
    "loses": where_it_loses,
    "unmeasured": unmeasured,
}


def filled(text: str) -> str:
    """``text`` with every block made anew."""
    return stored.filled(text, BLOCKS, PAGE.name)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
