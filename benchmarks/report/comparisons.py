"""The paper's Tables 3 and 4 from the results of `solo-attn compare`, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import PurePath
from statistics import mean, variance
from typing import Any

from solo_attn.evaluation import SYSTEMS, CocoMetrics, paper_table3, paper_table4
from solo_attn.models.backbone import default_norm

from . import stored
from .stored import measured_on, table

DATA = {
    "nuclei": "nuclei of the 2018 Data Science Bowl (one class)",
    "scenes": "synthetic street scenes (the paper's five classes)",
}
NO_COORDS, SOLO, ATTENTION = SYSTEMS
# Tables 3 and 4 of the paper, Cityscapes: AP, AP50, AP75; small, medium, large.
PAPER3 = {NO_COORDS: "11.0 / 20.1 / 11.0", SOLO: "12.8 / 21.0 / 13.7", ATTENTION: "14.7 / 26.6 / 14.0"}
PAPER4 = {SOLO: "0.1 / 4.3 / 33.0", ATTENTION: "0.5 / 8.0 / 38.0"}
# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; the last for more.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
SPREAD = (
    "Only the seed differs between runs of a system: the spread does not cover other images, and one "
    "interval in twenty is wrong. "
)


@dataclass(frozen=True)
class Difference:
    """Between two means of a number over the seeds, Welch's way.

    Attributes:
        value: the second less the first.
        error: its standard error; None where one of them has a single seed.
        low, high: ends of its 95 % interval; None as well.
    """

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


def difference(first: list[float], second: list[float]) -> Difference:
    """The difference of two systems, from their seeds."""
    value = mean(second) - mean(first)
    if min(len(first), len(second)) < 2:
        return Difference(value)
    parts = [(variance(seeds) / len(seeds), len(seeds) - 1) for seeds in (first, second)]
    squared = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = int(squared**2 / spread + 1e-9) if spread else sum(f for _, f in parts)
    reach = STUDENT[min(max(freedom, 1), len(STUDENT)) - 1] * sqrt(squared)
    return Difference(value, sqrt(squared), value - reach, value + reach)


def judged(what: str, first: list[float], second: list[float]) -> str:
    """A sentence on whether ``what`` helped, with its confidence interval; AP in 0..1."""
    found = difference(first, second)
    told = (
        f"**{what}**: AP {100 * mean(second):.1f} against {100 * mean(first):.1f}, a difference of "
        f"{100 * found.value:+.1f}"
    )
    if found.error is None or found.low is None or found.high is None:
        return f"{told}. A single seed gives no interval."
    told += (
        f" with a standard error of {100 * found.error:.1f} ({len(second)} and {len(first)} seeds; 95 % "
        f"interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    if found.low > 0:
        return f"{told}: it helped."
    if found.high < 0:
        return f"{told}: it made AP worse."
    return f"{told}: the effect is not significant."


def seeds_of(result: dict[str, Any], system: str) -> list[float]:
    """AP of each seed."""
    return [seed["ap"] for seed in result["summary"]["systems"][system]["seeds"]]


def form_of(model: dict[str, Any]) -> str:
    """The attention's form in words."""
    return f"{model['attention']}, {model['attention_vectors']}"


def judgements(result: dict[str, Any]) -> Iterator[tuple[str, list[float], list[float]]]:
    """The pairs to compare: (what was added, system without it, system with it)."""
    systems = result["summary"]["systems"]
    form = form_of(result["config"]["model"])
    named = {
        SOLO: ("Coordinates", NO_COORDS),
        ATTENTION: (f"Attention ({form}) beside coordinates", SOLO),
        "SOLOv2": ("SOLOv2 in place of SOLO", SOLO),
        "SOLOv2, attention": (f"Attention ({form}) in SOLOv2", "SOLOv2"),
        f"{ATTENTION}, float32": ("float32 in place of bfloat16", ATTENTION),
    }
    forms = {
        name: (f"{name} in place of {form}", ATTENTION) for name in systems if name not in {*SYSTEMS, *named}
    }
    for second, (what, first) in {**named, **forms}.items():
        if first in systems and second in systems:
            yield what, seeds_of(result, first), seeds_of(result, second)


def with_paper(markdown: str, paper: dict[str, str], head: str) -> str:
    """Add a column with the paper's own numbers."""
    lines = markdown.splitlines()
    systems = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    cells = [head, "---:", *(paper.get(system, "–") for system in systems)]
    return "\n".join(f"{line} {cell} |" for line, cell in zip(lines, cells, strict=True))


def budget(result: dict[str, Any]) -> str:
    """How long each system was trained, and on what."""
    model, train = result["config"]["model"], result["config"]["train"]
    lines = []
    for system, runs in result["runs"].items():
        steps = " to ".join(dict.fromkeys(f"{f(run['steps'] for run in runs):,}" for f in (min, max)))
        minutes = sum(run["seconds"] for run in runs) / 60
        losses = [
            f"{mean(run['losses'][name] for run in runs):.3f}"
            if all(run.get("losses") for run in runs)
            else "–"
            for name in ("dice", "focal")
        ]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        lines.append([system, seeds, steps, f"{minutes:,.0f}", *losses])
    head = ["algorithms", "seeds", "steps", "minutes in all", "dice loss", "focal loss"]
    sides = model["min_size"]
    size = "/".join(map(str, sides)) if isinstance(sides, list) else str(sides)
    norm = model["norm"] or default_norm(model["backbone"], model["pretrained"])
    weights = "pretrained" if model["pretrained"] else "from scratch"
    data = result["config"]["data"]
    measured = data.get("test_annotations") if result["split"] == "test" else data["val_annotations"]
    files = [PurePath(file or "").name for file in (data["train_annotations"], measured)]
    return (
        f"{table(head, lines)}\n\n"
        f"Trained on `{files[0]}`, evaluated on `{files[1]}`. "
        f"{model['backbone']} with {norm}, {weights}; "
        f"shorter side {size}, at most {model['max_size']}; {train['batch_size']} images a step, "
        f"{train['epochs']} epochs of {train['optimizer']}; the last epoch's weights. "
        "Losses: means of the last tenth of the steps; a dice loss near 1 means that no mask was learned."
    )


def comparison(machine: str, name: str) -> str:
    """The tables of one comparison on one machine."""
    result = stored.kept(f"comparison_{name}", machine)
    limit = result["summary"]["max_detections"]
    rows = {
        system: [CocoMetrics(**seed, max_detections=limit) for seed in found["seeds"]]
        for system, found in result["summary"]["systems"].items()
    }
    environments = [run["environment"] for runs in result["runs"].values() for run in runs]
    told = dict.fromkeys(measured_on(environment) for environment in environments)
    several = any(len(seeds) > 1 for seeds in rows.values())
    pictures = "".join(
        f"\n\n![{text}](images/{machine}_{name}_{kind}.png)"
        for kind, text in (
            ("comparison", "Mean, spread and each seed" if several else "Each system"),
            ("figure5", "The same scenes by the first seed of each"),
        )
        if (stored.IMAGES / f"{machine}_{name}_{kind}.png").exists()
    )
    judged_ones = "\n".join(f"- {judged(*compared)}" for compared in judgements(result))
    return (
        f"{with_paper(paper_table3(rows), PAPER3, 'paper, Cityscapes: AP / AP50 / AP75')}\n\n"
        f"{with_paper(paper_table4(rows), PAPER4, 'paper, Cityscapes: small / medium / large')}\n\n"
        f"{judged_ones}\n\n"
        f"Per cent, on the {result['split']} images, "
        f"{'mean ± sample standard deviation over the seeds' if several else 'of one seed'}, "
        f"at most {limit} instances an image. {SPREAD if several else ''}What each was trained with:\n\n"
        f"{budget(result)} "
        f"{' '.join(told)}{pictures}"
    )


def stored_ones(name: str) -> list[str]:
    """Machines that have this comparison."""
    return [machine for machine in stored.machines() if stored.kept(f"comparison_{name}", machine)]


def comparisons() -> str:
    """The section: each dataset, on each machine."""
    parts = []
    for name, words in DATA.items():
        there = stored_ones(name)
        title = words[0].upper() + words[1:]
        if not there:
            parts.append(f"### {title}\n\nNot measured yet.")
        parts += [f"### {title}, {machine}\n\n{comparison(machine, name)}" for machine in there]
    return "\n\n".join(parts)
