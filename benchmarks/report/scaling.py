"""How ops use a second thread, and how time and memory grow, for docs/speed.md."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from solo_attn.bench import FLOOR, PLAIN

from ..end_to_end.huge_pages import VARIABLE
from . import speed, stored
from .stored import measured_on, table

FIRST_RESULT = "first result"  # a contender of bench_attention_residual
LAST = 3  # points that an exponent is fitted to


def threads() -> str:
    """What a second thread gives to the ops on chosen cells."""
    found = stored.kept("threads")
    if not found:
        return "Not measured yet."
    rows = []
    for row in found["rows"]:
        one, two = medians_of(row)
        gains = sorted(gains_of(row))
        height, width = row["level"]
        call = min(median_of(row["call"]), one)
        rows.append(
            [
                row["op"],
                f"{row['masks']}, logits {height} x {width}",
                speed.milliseconds(one),
                speed.milliseconds(two),
                f"{median(gains):.2f}x",
                f"{gains[0]:.2f} to {gains[-1]:.2f}x",
                f"{2 * one / (one + call):.2f}x",
            ]
        )
    head = ["op", "masks", "1 thread, ms", "2 threads, ms", "speedup", "least to greatest", "at most"]
    started = [1e6 * seconds for seconds in medians_of(found["start"])]
    written = [1e3 * seconds for seconds in medians_of(found["memory"])]
    calls = [1e3 * median_of(row["call"]) for row in found["rows"]]
    spreads = {f"{row['op']} ({row['masks']})": row["spread"] for row in found["rows"]}
    return (
        f"{table(head, rows, words=2)}\n\n"
        f"Times are medians over {len(found['rows'][0]['call'])} processes. The speedup is the median of the "
        "processes' own, not the quotient of these times; the least and the greatest stand beside it. At "
        "most: if all were shared but "
        "the call itself (Python, dispatch, autograd of a gradient), and the second core brought no cache of "
        f"its own; the call takes {min(calls):.2f} to {max(calls):.2f} ms on one mask of 6 x 9. Nothing set: "
        "the memory of the result alone. "
        f"Writing {found['memory']['bytes'] >> 20} MiB that are there already, about what the 500 bool masks "
        f"have, takes {written[0]:.1f} ms with one thread and {written[1]:.1f} ms with two, "
        f"{median(gains_of(found['memory'])):.2f}x. Arithmetic that hardly needs memory (PyTorch's lgamma) "
        f"gains {median(gains_of(found['computed'])):.2f}x. "
        f"A loop of PyTorch that is hardly worth two threads takes {started[0]:.0f} us with one and "
        f"{started[1]:.0f} us with two. Of each row's least steady process: {speed.how_steady(spreads)} "
        f"{measured_on(found['environment'])}"
    )


def median_of(times: list[dict[str, Any]]) -> float:
    """Seconds: the median of the processes' medians."""
    return median(time["median"] for time in times)


def medians_of(race: dict[str, Any]) -> list[float]:
    """Seconds with one thread and with two."""
    return [median_of(race["seconds"][name]) for name in ("1", "2")]


def gains_of(race: dict[str, Any]) -> list[float]:
    """How many times as fast two threads are, in each process."""
    both = zip(race["seconds"]["1"], race["seconds"]["2"], strict=True)
    return [one["median"] / two["median"] for one, two in both]


def builds() -> str:
    """Each op of an older build beside this one's."""
    found = stored.kept("builds")
    if not found:
        return "Not measured yet."
    rows = [
        [
            row["op"],
            row["what"],
            row["pass"],
            *(speed.milliseconds(row["seconds"][name]["median"]) for name in ("old", "new")),
            f"{row['ratio']:.2f}x",
        ]
        for row in found["rows"]
    ]
    head = ["op", "sizes", "pass", "before, ms", "now, ms", "faster"]
    asking = max(time["median"] for time in found["asking"].values())
    return (
        f"{table(head, rows, words=3)}\n\nBefore: commit {found['old']}. Asking a process, which takes "
        f"{speed.milliseconds(asking)} ms, is part of all times. {measured_on(found['environment'])}"
    )


def kept_memory() -> str:
    """What the memory of an earlier result gives to `attention_residual`."""
    found = stored.kept("ops")
    entry = found["benchmarks"].get("attention_residual") if found else None
    if not entry or FIRST_RESULT not in entry["seconds"]:
        return "Not measured yet."
    ours, first, plain, floor = (
        speed.milliseconds(speed.median(entry, name)) for name in (entry["ours"], FIRST_RESULT, PLAIN, FLOOR)
    )
    return (
        f"`attention_residual` into a new result, {entry['what']}: {ours} ms, and {first} ms where no "
        f"earlier result has left its memory (the time to release it included), beside {plain} ms of "
        f"{PLAIN}, all in turn; {floor} ms is the floor, into memory that is there already. "
        f"{measured_on(found['environment'])}"
    )


def huge_pages() -> str:
    """What PyTorch's own huge pages give to a training step and a prediction."""
    found = stored.kept("huge_pages")
    if not found:
        return "Not measured yet."
    rows = []
    for work, row in found["rows"].items():
        without, with_it = (row[value]["median"] for value in ("0", "1"))
        rows.append([work, f"{without:.2f}", f"{with_it:.2f}", f"{without / with_it:.2f}x"])
    height, width = found["size"]
    return (
        f"{table(['one image', 'without, s', f'with `{VARIABLE}=1`, s', 'without / with'], rows)}\n\n"
        f"{width} x {height}, ResNet-50; processes with and without it in turn. "
        f"{measured_on(found['environment'])}"
    )


def points(axis: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each contender, in the order of their sizes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in axis["rows"]:
        found.setdefault(row["contender"], []).append(row)
    return found


def exponent(rows: list[dict[str, Any]], key: str) -> str:
    """The slope of log(key) over log(size) at the largest sizes; "–" of too few points."""
    last = [row for row in rows if row.get(key)][-LAST:]
    if len(last) < LAST:
        return "–"
    size, value = (np.log([row[name] for row in last]) for name in ("size", key))
    return f"{np.polyfit(size, value, 1)[0]:.2f}"


def growth() -> str:
    """How far each contender gets along each axis, and the exponents of its growth."""
    found = stored.kept("scale")
    if not found:
        return "Not measured yet."
    rows = []
    for axis in found["axes"].values():
        for contender, all_rows in points(axis).items():
            ran = [row for row in all_rows if "out_of" not in row]
            end = next((f"{row['out_of']} at {row['size']:,}" for row in all_rows if "out_of" in row), "–")
            numbers = ["–", "–", "–"]
            if ran:
                peak = ran[-1]["peak_bytes"]
                memory = "–" if peak is None else f"{peak / 2**20:,.0f}"
                numbers = [f"{ran[-1]['size']:,}", speed.milliseconds(ran[-1]["seconds"]), memory]
            growing = [exponent(ran, key) for key in ("seconds", "peak_bytes")]
            rows.append([f"{axis['what']}: {axis['unit']}", contender, *numbers, *growing, end])
    head = ["what grows", "contender", "largest", "ms", "MiB", "time ~ n^", "memory ~ n^", "ran out of"]
    limits = found["limits"]
    return (
        f"{table(head, rows, words=2)}\n\n"
        "![Time and peak memory over each size, on logarithmic axes](images/scale.svg)\n\n"
        f"Each point is a process that may allocate {limits['memory_bytes'] / 2**30:.0f} GiB and use "
        f"{limits['processor_seconds']} seconds of processor time, its inputs included. Exponents are "
        f"fitted to the {LAST} largest sizes. MiB: peak beyond the inputs. "
        f"{measured_on(found['environment'])}"
    )


def plot(path: Path) -> None:
    """Time above, peak memory below, an axis in each column."""
    axes = stored.kept("scale")["axes"]
    with rc_context({"svg.hashsalt": "solo-attn", "svg.fonttype": "none", "font.size": 7}):
        figure = Figure(figsize=(2.1 * len(axes), 4), layout="constrained")
        panels = figure.subplots(2, len(axes), squeeze=False, sharex="col")
        colours: dict[str, str] = {}
        for column, axis in enumerate(axes.values()):
            for panel, key, factor in (
                (panels[0, column], "seconds", 1e3),
                (panels[1, column], "peak_bytes", 2**-20),
            ):
                for contender, rows in points(axis).items():
                    ran = [row for row in rows if row.get(key)]
                    colour = colours.setdefault(contender, f"C{len(colours)}")
                    size, value = [row["size"] for row in ran], [factor * row[key] for row in ran]
                    panel.loglog(size, value, "o-", ms=3, lw=1, color=colour, label=contender)
                panel.spines[["top", "right"]].set_visible(False)
            panels[0, column].set_title(axis["what"], fontsize=7)
            panels[1, column].set_xlabel(axis["unit"])
            panels[0, column].legend(fontsize=6, frameon=False)
        panels[0, 0].set_ylabel("ms")
        panels[1, 0].set_ylabel("MiB")
        figure.savefig(path, metadata={"Date": None})
