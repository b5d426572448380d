"""A picture of what `benchmarks/gpu.py` stored: ours, PyTorch's and the floor, of each op at batch 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel for each dtype, times as multiples of the fastest contender's own floor where it has one."""
    dtypes = list(dict.fromkeys(case["dtype"] for case in result["cases"]))
    figure, panels = plt.subplots(1, len(dtypes), figsize=(7 * len(dtypes), 6), squeeze=False, sharey=True)
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
    plt.close(figure)
