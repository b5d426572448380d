"""Losses and AP over the steps of a training."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .._utils.checks import fail
from .._utils.files import replacing


def learning_curve(
    rows: Sequence[Mapping[str, Any]] | str | Path,
    path: str | Path,
    *,
    losses: Sequence[str] = ("loss_category", "loss_mask"),
    metrics: Sequence[str] = ("ap", "ap50", "ap75"),
) -> None:
    """Plot each loss in its own panel (focal and dice have different scales) and AP in another.

    Args:
        rows: dicts with ``step`` and the values measured at it, or a CSV file of them (Lightning's CSVLogger
            writes one). A value may be missing or empty. "train/loss_mask" is found as "loss_mask".
        path: an image file; its suffix (.png, .svg, .pdf) says the format.
        losses: names of losses.
        metrics: names of metrics in 0..1, plotted in per cent; -1, undefined, is left out.

    Raises:
        FileNotFoundError: the CSV file is missing.
        ValueError: no row has a ``step`` and one of the names, a value is not a number, or a line of the CSV
            file has more columns than its header.
        OSError: ``path`` cannot be written.
    """
    figure = curve_figure(rows, losses=losses, metrics=metrics)
    with replacing(path, "learning_curve") as temporary:
        figure.savefig(temporary, dpi=150)


def curve_figure(
    rows: Sequence[Mapping[str, Any]] | str | Path,
    *,
    losses: Sequence[str] = ("loss_category", "loss_mask"),
    metrics: Sequence[str] = ("ap", "ap50", "ap75"),
) -> Figure:
    """What `learning_curve` writes."""
    source = "rows" if not isinstance(rows, (str, Path)) else f"'{rows}'"
    if isinstance(rows, (str, Path)):
        rows = _read_csv(rows)
    series = {name: _series(rows, name) for name in (*losses, *metrics)}
    panels = [[name] for name in losses if series[name]]
    measured = [name for name in metrics if any(value >= 0 for _, value in series[name])]
    panels += [measured] if measured else []
    if not panels:
        names = sorted({key for row in rows for key in row})
        fail("learning_curve", source, f"to have step and one of {', '.join(series)}", str(names))
    figure = Figure(figsize=(8, 2.4 * len(panels)), layout="constrained")
    for axes, names in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        for name in names:
            points = series[name]
            if names is measured:
                points = [(step, 100 * value) for step, value in points if value >= 0]
            # A line through one point is invisible, and AP is measured only a few times.
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, ms=3, label=name)
        axes.set_ylabel("per cent" if names is measured else names[0])
        axes.grid(alpha=0.3)
        if names is measured:
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False)
    axes.set_xlabel("step")
    return figure


def _read_csv(path: str | Path) -> list[dict[str, str]]:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"learning_curve: expected rows to be a CSV file, got '{path}' (no such file)"
        )
    rows = []
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if extra := row.pop(None, None):
                fail(
                    "learning_curve",
                    f"line {reader.line_num} of '{path}'",
                    f"of {len(row)} columns as its header has",
                    str(len(row) + len(extra)),
                )
            rows.append(row)
    return rows


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of one name by step, which Lightning's rows are not sorted by."""
    points = []
    for row in rows:
        for key, value in row.items():
            if (
                key.rpartition("/")[2] == name
                and value not in ("", None)
                and row.get("step") not in ("", None)
            ):
                try:
                    points.append((float(row["step"]), float(value)))
                except (TypeError, ValueError):
                    fail("learning_curve", f"{key} at step {row['step']}", "a number", repr(value))
    return sorted(points)
