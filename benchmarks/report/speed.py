"""Tables and plot of speed, from ``results/cpu/ops.json`` and ``results/cpu/mmdet.json``.

`make bench` and `make bench-peers` store these each on its own: what is not there is told as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from solo_attn.bench import COMPILED, FLOOR, PLAIN
from solo_attn.bench.quiet import STEADY

Stored = Callable[[str], Any]
REFERENCE = "reference"
HOW = (
    "Milliseconds, medians of runs that take turns in one process; every result was compared before it was "
    "timed. The floor is what PyTorch takes to read every input and write every output once, into memory "
    "that is there already, and to do the matrix product if there is one. Large results of ours "
    "are in the memory of earlier ones ([how long they take without](#memory-of-large-results))."
)


@dataclass(frozen=True)
class Comparison:
    """One row of the table in docs/speed.md.

    Attributes:
        work: in words.
        name: of the benchmark.
        against: the contender.
    """

    work: str
    name: str
    against: str


THEIRS = "mmdetection"
COMPARISONS = (
    Comparison("Matrix NMS, 500 masks 200 x 336, 80 labels", "mmdet_nms", THEIRS),
    Comparison("Matrix NMS, 500 masks predicted on COCO images", "mmdet_nms_real", THEIRS),
    Comparison("mask IoU, the same 500 masks, all pairs", "mask_iou", "pycocotools"),
    Comparison("attention residual in place, 1600 maps 168 x 336", "attention_residual_inplace", PLAIN),
    Comparison("attention residual in place, 1600 maps 168 x 336", "attention_residual_inplace", COMPILED),
    Comparison("head and prediction, 200 candidates on 3 levels", "mmdet_predict[three]", THEIRS),
    Comparison("head and a training step, 12 objects", "mmdet_train", THEIRS),
    Comparison("SOLOv2: head and prediction, 200 candidates", "mmdet_solov2_predict", THEIRS),
    Comparison("SOLOv2: its masks alone", "mmdet_solov2_predict_masks", THEIRS),
    Comparison("SOLOv2: head and a training step, 12 objects", "mmdet_solov2_train", THEIRS),
    Comparison("SOLOv2: its masks alone, with gradients", "mmdet_solov2_train_masks", THEIRS),
    Comparison("100 masks to COCO RLE at 1024 x 2048", "paste_masks_rle", PLAIN),
    Comparison("training targets of one image, 12 objects", "mmdet_targets", THEIRS),
)
OF_MEMORY = (
    "mmdet_predict[three]",
    "mmdet_train",
    "mmdet_solov2_predict",
    "mmdet_solov2_predict_masks",
    "mmdet_solov2_train",
    "mmdet_solov2_train_masks",
)  # of these also the peak of both


def benchmarks(stored: Stored) -> dict[str, Any]:
    """All benchmarks that were run, by name."""
    found = [stored(name) for name in ("ops", "mmdet")]
    return {name: entry for half in found if half for name, entry in half["benchmarks"].items()}


def median(entry: dict[str, Any], name: str) -> float:
    """Seconds of one contender; NaN if it did not run, such as torch.compile in a quick run."""
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


def compared(stored: Stored) -> Iterator[tuple[Comparison, dict[str, Any], float]]:
    """Each comparison, and the ratio of the other time to ours; NaN if that was not measured."""
    found = benchmarks(stored)
    for row in COMPARISONS:
        entry = found.get(row.name)
        yield row, entry or {}, median(entry, row.against) / ours(entry) if entry else math.nan


def memories(stored: Stored) -> Iterator[tuple[Comparison, int, int]]:
    """The comparisons whose peak memory was measured: (comparison, our bytes, theirs)."""
    for row, entry, _ in compared(stored):
        memory = entry.get("memory", {})
        if row.name in OF_MEMORY and row.against in memory and entry["ours"] in memory:
            yield row, memory[entry["ours"]], memory[row.against]


def speed_table(stored: Stored) -> str:
    """Every comparison, with the floor if there is one."""
    return rows_of(compared(stored))


def rows_of(rows: Iterable[tuple[Comparison, dict[str, Any], float]]) -> str:
    """The rows of `compared`."""
    lines = [
        f"| work | against | theirs, ms | ours, ms | {FLOOR}, ms | faster |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row, entry, ratio in rows:
        numbers = "– | – | – | not measured"
        if not math.isnan(ratio):
            cells = [milliseconds(median(entry, name)) for name in (row.against, entry["ours"], FLOOR)]
            numbers = " | ".join([*cells, times(ratio)])
        lines.append(f"| {row.work} | {row.against} | {numbers} |")
    return "\n".join(lines)


def mebibytes(entry: dict[str, Any], name: str) -> str:
    """Peak memory of one contender; "–" if it was not measured."""
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


def how_quiet(stored: Stored) -> str:
    """What else the machine did before each race, and the races whose medians did not stand still."""
    found = {name: entry for name, entry in benchmarks(stored).items() if entry.get("spread") is not None}
    if not found:
        return "How quiet the machine was is not stored with these."
    known = [entry["busy"] for entry in found.values() if entry["busy"] is not None]
    told = ""
    if known:
        told = f"Other work kept at most {max(known):.1f} cores busy in the second before each race. "
    return told + how_steady({name.replace("_", " "): entry["spread"] for name, entry in found.items()})


def how_steady(spreads: dict[str, float]) -> str:
    """The races whose medians did not stand still."""
    moving = [f"{name} {spread:.0%}" for name, spread in spreads.items() if spread > STEADY]
    if not moving:
        return f"The medians of the last three batches of each race agree to {STEADY:.0%}."
    return f"The medians of the last three batches agree to {STEADY:.0%} but for {', '.join(moving)}."


def memory_line(stored: Stored) -> str:
    """Peak memory of the heads."""
    return "; ".join(
        f"{row.work}, {mine / 2**20:,.0f} MiB against {their / 2**20:,.0f} ({mine / their:.0%})"
        for row, mine, their in memories(stored)
    )


def plot(stored: Stored, path: Path) -> None:
    """The speed relative to plain PyTorch, with and without torch.compile, and to the floor."""
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
