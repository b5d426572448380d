"""The paper's tables, for several seeds of each system: Markdown, terminal, JSON and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from .._utils.checks import fail
from .._utils.files import replacing
from .coco_metrics import METRICS, CocoMetrics

SYSTEMS = ("SOLO (no coords)", "SOLO", "Attention mechanism")
"""The systems that the paper compares, named as in its Table 3."""

TABLE3 = ("ap", "ap50", "ap75")
TABLE4 = ("ap_small", "ap_medium", "ap_large")

Rows = Mapping[str, Sequence[CocoMetrics]]
"""A system's name -> the metrics of each of its seeds."""


def paper_table3(rows: Rows) -> str:
    """AP, AP50 and AP75 as a Markdown table, in per cent with one decimal (the paper's Table 3).

    One seed prints as "12.8", several as "12.8 ± 0.4" (mean and sample standard deviation), what the ground
    truth leaves undefined as "–". Rows come in the order of ``rows``.

    Raises:
        ValueError: there is no row, a system has no seed, or max_detections are not all the same.
    """
    return _markdown("paper_table3", rows, TABLE3)


def paper_table4(rows: Rows) -> str:
    """AP of small, medium and large objects, otherwise as `paper_table3` (the paper's Table 4)."""
    return _markdown("paper_table4", rows, TABLE4)


def rich_table(rows: Rows, columns: Sequence[str] = TABLE3 + TABLE4, title: str | None = None) -> Table:
    """The same numbers for the terminal: ``rich.print(rich_table(rows))``.

    Args:
        rows: a system's name -> the metrics of its seeds.
        columns: names of `CocoMetrics` fields.
        title: printed above.

    Raises:
        ValueError: as `paper_table3`, or a column is not one of the twelve.
    """
    _check("rich_table", rows, columns)
    table = Table(title=title)
    table.add_column("algorithms", no_wrap=True)
    for column in columns:
        table.add_column(_heading(column).replace("_", " "), justify="right")
    for system, seeds in rows.items():
        table.add_row(system, *(_cell(seeds, column) for column in columns))
    return table


def summary_json(rows: Rows) -> dict[str, Any]:
    """All numbers behind the tables, ready for `json`.

    Returns:
        ``max_detections``, and under ``systems`` for each system ``seeds`` (a dict of the twelve numbers for
        each, in 0..1, -1 where undefined), ``mean`` and ``std`` (sample standard deviation) of the twelve;
        None where undefined: a mean of no number, a deviation of fewer than two.

    Raises:
        ValueError: as `paper_table3`.
    """
    _check("summary_json", rows, METRICS)
    systems = {}
    for system, seeds in rows.items():
        statistics = {column: _mean_std(seeds, column) for column in METRICS}
        systems[system] = {
            "seeds": [metrics.as_dict() for metrics in seeds],
            "mean": {column: average for column, (average, _) in statistics.items()},
            "std": {column: deviation for column, (_, deviation) in statistics.items()},
        }
    return {"max_detections": _limits(rows).pop(), "systems": systems}


def comparison_plot(rows: Rows, path: str | Path, columns: Sequence[str] = TABLE3 + TABLE4) -> None:
    """Grouped bars, a group per column and a bar per system: mean, sample standard deviation, seeds as dots.

    Args:
        rows: a system's name -> the metrics of its seeds.
        path: an image file; its suffix (.png, .svg, .pdf) says the format.
        columns: names of `CocoMetrics` fields; those that no system has, as of sizes that no object has, are
            left out.

    Raises:
        ValueError: as `rich_table`, or the suffix names no format.
        OSError: ``path`` cannot be written.
    """
    _check("comparison_plot", rows, columns)
    columns = [column for column in columns if any(_defined(seeds, column) for seeds in rows.values())]
    inches = max(6.0, 2 + 1.2 * len(columns))
    figure = Figure(figsize=(inches, 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(rows)
    for number, (system, seeds) in enumerate(rows.items()):
        shift = (number - (len(rows) - 1) / 2) * width
        bars = []
        for group, column in enumerate(columns):
            average, deviation = _mean_std(seeds, column)
            if average is not None:
                bars.append((group + shift, 100 * average))
            if average is not None and deviation is not None:
                values = [100 * value for value in _defined(seeds, column)]
                axes.errorbar(group + shift, 100 * average, 100 * deviation, color="black", capsize=3)
                axes.scatter(
                    [group + shift] * len(values), values, s=12, c="white", edgecolors="black", zorder=3
                )
        axes.bar([x for x, _ in bars], [y for _, y in bars], 0.92 * width, color=f"C{number}", label=system)
    axes.set_xticks(range(len(columns)), [_heading(column) for column in columns])
    axes.set_ylabel("per cent")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the bars, which would lie behind it anywhere else where there are many.
    across = max(1, int(inches / (0.6 + 0.07 * max(map(len, rows)))))  # as many names as fit
    figure.legend(loc="outside lower center", ncols=min(len(rows), across), frameon=False)
    with replacing(path, "comparison_plot") as temporary:
        figure.savefig(temporary, dpi=150)


def _markdown(function: str, rows: Rows, columns: Sequence[str]) -> str:
    _check(function, rows, columns)
    lines = [["algorithms", *map(_heading, columns)], ["---", *["---:"] * len(columns)]]
    for system, seeds in rows.items():
        lines.append([system.replace("|", r"\|"), *(_cell(seeds, column) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _heading(column: str) -> str:
    """ "ap_small" -> "AP_small", "ap50" -> "AP50"."""
    return column[:2].upper() + column[2:]


def _cell(seeds: Sequence[CocoMetrics], column: str) -> str:
    average, deviation = _mean_std(seeds, column)
    if average is None:
        return "–"
    return f"{100 * average:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _defined(seeds: Sequence[CocoMetrics], column: str) -> list[float]:
    return [value for metrics in seeds if (value := getattr(metrics, column)) >= 0]


def _mean_std(seeds: Sequence[CocoMetrics], column: str) -> tuple[float | None, float | None]:
    values = _defined(seeds, column)
    return (mean(values) if values else None, stdev(values) if len(values) > 1 else None)


def _limits(rows: Rows) -> set[int]:
    return {metrics.max_detections for seeds in rows.values() for metrics in seeds}


def _check(function: str, rows: Rows, columns: Sequence[str]) -> None:
    if not rows:
        fail(function, "rows", "of at least one system", "none")
    for system, seeds in rows.items():
        if not seeds:
            fail(function, f"rows[{system!r}]", "of at least one seed", "none")
    if len(limits := _limits(rows)) > 1:
        fail(function, "rows", "all evaluated with the same max_detections", str(sorted(limits)))
    unknown = [column for column in columns if column not in METRICS]
    if unknown:
        fail(function, "columns", f"among {', '.join(METRICS)}", repr(unknown[0]))
