"""The stored results of `benchmarks/gpu`, as tables and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from solo_attn.bench import COMPILED, PLAIN

from . import stored
from .speed import REFERENCE, mebibytes, median, milliseconds
from .stored import measured_on, table


def ours_of(case: dict[str, Any]) -> str:
    """The default backend of an op, which is the first that was timed."""
    return next(name for name in case["seconds"] if name not in (PLAIN, COMPILED, REFERENCE))


def named(case: dict[str, Any]) -> str:
    """A case in words."""
    direction = ", backward" if case["direction"] == "backward" else ""
    return f"{case['op']}: {case['what']}{direction}; batch {case['batch']}, {case['dtype']}"


def row(case: dict[str, Any]) -> list[str]:
    """Times and memory of one case."""
    ours = ours_of(case)
    floor = case.get("floor")
    above = "–" if floor is None else f"{median(case, ours) / floor:.1f}"
    hidden = [milliseconds(median(case, name)) for name in (ours, PLAIN, COMPILED)]
    bound = ["*" if name in case.get("host_bound", ()) else "" for name in (ours, PLAIN, COMPILED)]
    times = [f"{time}{mark}" for time, mark in zip(hidden, bound, strict=True)]
    return [named(case), ours, *times, above, mebibytes(case, ours), mebibytes(case, PLAIN)]


def gpu_section(machine: str, found: dict[str, Any]) -> str:
    """Every case, the best rates of the GPU, and what was not measured."""
    rates = "; ".join(
        f"{name} {rate / 1e12:.2f} {'TB/s' if name == 'copy' else 'TFLOP/s'}"
        for name, rate in found["rates"].items()
    )
    head = ["case", "ours", "ours, ms", PLAIN, COMPILED, "ours / floor", "MiB", f"{PLAIN}, MiB"]
    paths = [
        [f"from features to masks, {path['dtype']}"]
        + [milliseconds(median(path, name)) for name in ("lazy", "dense")]
        + [mebibytes(path, name) for name in ("lazy", "dense")]
        for path in found["lazy"]
    ]
    picture = stored.RESULTS / machine / "gpu.png"
    drawn = f"\n\n![Each op](../benchmarks/results/{machine}/gpu.png)" if picture.exists() else ""
    marked = any(case.get("host_bound") for case in found["cases"])
    star = " With a star: the time is the host's too." if marked else ""
    return (
        f"{table(head, [row(case) for case in found['cases']], words=2)}\n\n"
        "Inference's path, chosen cells only (ours) against every cell (dense):\n\n"
        f"{table(['path', 'ours, ms', 'dense, ms', 'ours, MiB', 'dense, MiB'], paths)}\n\n"
        f"Medians. The floor is what a case's bytes and flops take at the best rates that the same run "
        f"measured: {rates}.{star} Left out: {', '.join(found['left_out']) or 'nothing'}. "
        f"{measured_on(found['environment'])}{drawn}"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel for each dtype, times as multiples of the fastest contender's own floor where it has one."""
    dtypes = list(dict.fromkeys(case["dtype"] for case in result["cases"]))
    figure = Figure(figsize=(7 * len(dtypes), 6))
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        shown = [case for case in result["cases"] if case["dtype"] == dtype and case["batch"] == 1]
        names = list(dict.fromkeys(name for case in shown for name in case["seconds"]))
        height = 0.8 / max(1, len(names))
        for k, name in enumerate(names):
            rows = [j for j, case in enumerate(shown) if name in case["seconds"]]
            times = [1e3 * shown[j]["seconds"][name]["median"] for j in rows]
            panel.barh([j + k * height for j in rows], times, height, label=name)
            for j, seconds in zip(rows, times, strict=True):
                if name in shown[j]["host_bound"]:
                    panel.text(seconds, j + k * height, " host", fontsize=5, verticalalignment="center")
        floors = [(j, 1e3 * case["floor"]) for j, case in enumerate(shown) if "floor" in case]
        for j, floor in floors:
            panel.plot([floor, floor], [j - height / 2, j + 0.8 - height / 2], color="black", linewidth=1)
        labels = [f"{case['op']} {case['direction']}\n{case['what']}" for case in shown]
        panel.set_yticks([j + 0.4 - height / 2 for j in range(len(shown))], labels, fontsize=7)
        panel.set_xscale("log")
        panel.set_xlabel(
            "milliseconds (black: what bytes and flops take at the measured rates; host: its part is in it)"
        )
        panel.set_title(dtype)
        panel.legend(fontsize=7)
    facts = result["environment"]
    figure.suptitle(
        f"{facts['device']}, torch {facts['torch']}, triton {facts.get('triton')}, {facts['commit']}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
