"""The generated parts of README.md: its picture, three rows of speed, one table of results."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from . import speed, stored
from .comparisons import ATTENTION, DATA, NO_COORDS, SOLO, difference, form_of, seeds_of
from .results_page import NUCLEI
from .speed_page import measured_where
from .stored import measured_on, per_cent, table

ROWS = ("mmdet_nms_real", "mmdet_train", "paste_masks_rle")


def hero() -> str:
    """A photograph with the masks that a trained model finds; the nuclei's masks until one is drawn."""
    found = stored.kept("hero")
    if not found:
        return "![Masks of the nuclei found on two images](docs/images/nuclei_found.png)"
    return (
        f"![{found['instances']} instances that a trained model finds](docs/images/hero.png)\n\n"
        f"{found['instances']} instances with a score of at least {found['score']}. Photograph: "
        f"{found['photograph']}. {measured_on(found['environment'])}"
    )


def fast() -> str:
    """Three rows of the speed table in docs/speed.md."""
    rows = [line for line in speed.compared(stored.kept) if line[0].name in ROWS]
    return f"{speed.rows_of(rows)}\n\nMeasured: {measured_where()}."


def results() -> str:
    """AP of the paper's three systems on each dataset, and what attention changed."""
    lines, told = [], []
    for name, words in (*DATA.items(), ("demo", "the demo: synthetic street scenes, minutes of training")):
        found = stored.kept(name if name == "demo" else f"comparison_{name}")
        if not found:
            lines.append([words, "–", "–", "–", "not measured"])
            continue
        there = found["summary"]["systems"]
        seeds = {
            name: seeds_of(found, name) if name in there else [] for name in (NO_COORDS, SOLO, ATTENTION)
        }
        change = difference(seeds[SOLO], seeds[ATTENTION])
        by = f"{100 * change.value:+.1f}"
        if change.low is not None and change.high is not None:
            by += f" ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        count = len(seeds[ATTENTION])
        form = form_of(found["config"]["model"])
        what = f"{words}; {count} seed{'s' if count > 1 else ''}, {form}"
        lines.append([what, *(per_cent(mean(values)) if values else "–" for values in seeds.values()), by])
        runs = [run for system in seeds for run in found["runs"].get(system, [])]
        told += [measured_on(run.get("environment", found["environment"])) for run in runs]
    head = ["data", NO_COORDS, SOLO, "SOLO + attention", "attention: change of AP (95 %)"]
    more = ""
    for recipe in NUCLEI:
        if long := stored.kept(recipe):
            metrics = long["test_metrics"]
            more += (
                f"The recipe of `configs/{recipe}.yaml`, on the test images of the nuclei: AP "
                f"{per_cent(metrics['ap'])}, AP50 "
                f"{per_cent(metrics['ap50'])} {measured_on(long['environment'], long['seconds'])}. "
            )
    return f"{table(head, lines)}\n\n{more}Machines and commits: {' '.join(dict.fromkeys(told)) or 'none'}."


BLOCKS: dict[str, Callable[[], str]] = {"hero": hero, "fast": fast, "results": results}
