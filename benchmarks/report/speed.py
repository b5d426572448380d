"""Tables and plot of speed, from ``results/cpu/ops.json`` and ``results/cpu/mmdet.json``.

`make bench` and `make bench-peers` store these each on its own: what is not there is told as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from solo_attn.bench import COMPILED, FLOOR, PLAIN

Stored = Callable[[str], Any]
REFERENCE = "reference"


@dataclass(frozen=True)
class Goal:
    """What one piece of work should reach against one contender, in times as fast.

    Attributes:
        work: in words.
        name: of the benchmark.
        against: the contender.
        least: must be reached.
        aim: should be.
    """

    work: str
    name: str
    against: str
    least: float
    aim: float


THEIRS = "mmdetection"
GOALS = (
    Goal("Matrix NMS, 500 masks 200 x 336, 80 labels", "mmdet_nms", THEIRS, 40, 100),
    Goal("Matrix NMS, 500 masks predicted on COCO images", "mmdet_nms_real", THEIRS, 40, 100),
    Goal("mask IoU, the same 500 masks, all pairs", "mask_iou", "pycocotools", 10, 30),
    Goal("attention residual in place, 1600 maps 168 x 336", "attention_residual_inplace", PLAIN, 8, 13),
    Goal("attention residual in place, 1600 maps 168 x 336", "attention_residual_inplace", COMPILED, 5, 10),
    Goal("head and prediction, 200 candidates on 3 levels", "mmdet_predict[three]", THEIRS, 1.5, 3),
    Goal("head and a training step, 12 objects", "mmdet_train", THEIRS, 1.4, 2),
    Goal("100 masks to COCO RLE at 1024 x 2048", "paste_masks_rle", PLAIN, 10, 30),
    Goal("training targets of one image, 12 objects", "mmdet_targets", THEIRS, 5, 20),
)
# Of the memory that the other needs, at most so much.
MEMORY_GOALS = (("mmdet_predict[three]", THEIRS, 1 / 3), ("mmdet_train", THEIRS, 1 / 2))
# Why a row that misses what it must does so.
REASONS = {
    "attention_residual_inplace": "In place, the attention residual stays above its floor, one pass over the "
    "logits and the matrix product, and the floor itself would pass only narrowly.",
}


def benchmarks(stored: Stored) -> dict[str, Any]:
    """All that were run, by name."""
    found = [stored(name) for name in ("ops", "mmdet")]
    return {name: entry for half in found if half for name, entry in half["benchmarks"].items()}


def median(entry: dict[str, Any], name: str) -> float:
    """Seconds of one contender; NaN where it did not run, as torch.compile in a quick run."""
    return float(entry["seconds"][name]["median"]) if name in entry["seconds"] else math.nan


def ours(entry: dict[str, Any]) -> float:
    """Seconds of ours."""
    return median(entry, entry["ours"])


def milliseconds(seconds: float) -> str:
    """Three digits: "0.123", "12.3", "1,230"."""
    if math.isnan(seconds):
        return "–"
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float) -> str:
    """Two digits: "1.4x", "23x"."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def goals(stored: Stored) -> Iterator[tuple[Goal, dict[str, Any], float]]:
    """Each goal, and how many times as fast as the other ours is; NaN where that was not measured."""
    found = benchmarks(stored)
    for goal in GOALS:
        entry = found.get(goal.name)
        yield goal, entry or {}, median(entry, goal.against) / ours(entry) if entry else math.nan


def memories(stored: Stored) -> Iterator[tuple[str, int, int, float]]:
    """Each goal of memory that was measured: (benchmark, our peak, theirs, the share aimed at)."""
    found = benchmarks(stored)
    for name, against, share in MEMORY_GOALS:
        memory = found.get(name, {}).get("memory", {})
        if against in memory and found[name]["ours"] in memory:
            yield name, memory[found[name]["ours"]], memory[against], share


def missed(stored: Stored) -> list[str]:
    """Names of the benchmarks that do not reach what they must."""
    slow = [goal.name for goal, _, ratio in goals(stored) if ratio < goal.least]
    large = [name for name, mine, their, share in memories(stored) if mine > share * their]
    return list(dict.fromkeys([*slow, *large]))


def goal_table(stored: Stored) -> str:
    """What was promised, and what came of it."""
    lines = [
        "| work | against | theirs, ms | ours, ms | faster | at least | aim |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for goal, entry, ratio in goals(stored):
        numbers = "– | – | not measured"
        if not math.isnan(ratio):
            shown = times(ratio) if ratio >= goal.least else f"**{times(ratio)}**"
            numbers = f"{milliseconds(median(entry, goal.against))} | {milliseconds(ours(entry))} | {shown}"
        lines.append(f"| {goal.work} | {goal.against} | {numbers} | {goal.least:g}x | {goal.aim:g}x |")
    return "\n".join(lines)


def mebibytes(entry: dict[str, Any], name: str) -> str:
    """Peak memory of one contender; "–" where none was taken."""
    peak = entry.get("memory", {}).get(name)
    return "–" if peak is None else f"{peak / 2**20:,.0f}"


def op_table(stored: Stored) -> str:
    """Each op and direction against everything."""
    head = (
        "op",
        "case",
        "ours",
        PLAIN,
        COMPILED,
        REFERENCE,
        FLOOR,
        f"ours / {FLOOR}",
        "MiB",
        f"{PLAIN}, MiB",
    )
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for entry in (stored("ops") or {"benchmarks": {}})["benchmarks"].values():
        case = entry["what"] + (", backward" if entry["direction"] == "backward" else "")
        cells = [
            milliseconds(median(entry, name)) for name in (entry["ours"], PLAIN, COMPILED, REFERENCE, FLOOR)
        ]
        memory = [mebibytes(entry, name) for name in (entry["ours"], PLAIN)]
        above = ours(entry) / median(entry, FLOOR)
        ratio = "–" if math.isnan(above) else f"{above:.1f}"
        lines.append(f"| {' | '.join([entry['op'], case, *cells, ratio, *memory])} |")
    return "\n".join(lines)


def memory_line(stored: Stored) -> str:
    """Peak memory of the heads."""
    parts = []
    for name, mine, their, share in memories(stored):
        work = next(goal.work for goal in GOALS if goal.name == name)
        shown = f"{mine / their:.0%}" if mine <= share * their else f"**{mine / their:.0%}**"
        parts.append(
            f"{work}, {mine / 2**20:,.0f} MiB against {their / 2**20:,.0f} ({shown}; at most {share:.0%} was "
            "aimed at)"
        )
    return "; ".join(parts)


def plot(stored: Stored, path: Path) -> None:
    """Times as fast as plain PyTorch and as what torch.compile makes of it, and how far the floor is."""
    entries = list(reversed(stored("ops")["benchmarks"].items()))
    # The same data must give the same file.
    with rc_context({"svg.hashsalt": "solo-attn", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7, 0.42 * len(entries) + 0.8), layout="constrained")
        axes = figure.add_subplot()
        for k, (_, entry) in enumerate(entries):
            for shift, name, colour in ((0.18, PLAIN, "C0"), (-0.18, COMPILED, "C1")):
                axes.barh(k + shift, median(entry, name) / ours(entry), 0.34, color=colour)
            axes.plot([median(entry, PLAIN) / median(entry, FLOOR)], [k + 0.18], "k|", markersize=9)
        axes.set_yticks(range(len(entries)), [name.replace("_", " ") for name, _ in entries])
        axes.set_xscale("log")
        axes.axvline(1, color="grey", lw=0.8)
        axes.set_xlabel(f"times as fast as {PLAIN} (blue) and {COMPILED} (orange); bar: {PLAIN} / {FLOOR}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
