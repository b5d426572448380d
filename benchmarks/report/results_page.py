"""The generated parts of docs/results.md: accuracy, losses, and what was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable

from solo_attn.evaluation import CocoMetrics, paper_table3, paper_table4
from solo_attn.evaluation.errors import FALSE, MISSED

from . import speed, stored
from .comparisons import DATA, comparisons, stored_ones
from .speed_page import GPU_FILES, absent
from .stored import CPU, measured_on, per_cent, table
from .where_it_loses import where_it_loses


def attention_scale() -> str:
    """Losses after the same number of steps with each scale."""
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


NUCLEI = {"nuclei_pretrained": "on fixed ImageNet features", "nuclei_small": "from scratch"}
"""Stored runs of the configurations of these names."""


def nuclei() -> str:
    """The metrics and the learning curve of both configurations for nuclei."""
    keys = ("ap", "ap50", "ap75")
    rows, limits = [], set()
    for name, what in NUCLEI.items():
        result = stored.kept(name)
        if not result:
            rows.append([f"`configs/{name}.yaml`, {what}", *["–"] * 8, "not measured"])
            continue
        limits.add(f"{result['test_metrics']['max_detections']}")
        rows.append(
            [
                f"`configs/{name}.yaml`, {what}",
                f"{result['steps']:,}",
                f"{result['seconds'] / 60:.0f}",
                *(per_cent(result[part][key]) for part in ("metrics", "test_metrics") for key in keys),
                measured_on(result["environment"]),
            ]
        )
    parts = [f"{key[:2].upper()}{key[2:]} {part}" for part in ("val", "test") for key in keys]
    return (
        f"{table(['recipe', 'steps', 'minutes', *parts, 'measured'], rows)}\n\n"
        f"At most {' and '.join(sorted(limits))} nuclei an image. Recipes were chosen on the validation "
        f"images; the test images were evaluated once, at the end of each training.\n\n"
        "![Losses and AP over the steps, on fixed ImageNet features](images/nuclei_curve.png)\n\n"
        "Predictions on two test images (scores of at least 0.3), each instance in its own colour:\n\n"
        "![Masks of the nuclei found on two images](images/nuclei_found.png)"
    )


def recipe() -> str:
    """What each part of the recipe for nuclei gives, and where it loses objects."""
    found = stored.kept("recipe")
    if not found:
        return "Not measured yet."
    rows = [
        [
            name,
            f"{row['steps']:,}",
            f"{row['dice']:.3f}",
            per_cent(row["ap"]),
            per_cent(row["ap50"]),
            f"{row['seconds'] / 60:.1f}",
        ]
        for name, row in found["rows"].items()
    ]
    errors = found["errors"]
    missed = errors["missed_by_reason"]
    wrong = errors["false_positives_by_kind"]
    lost = [["missed", MISSED[reason], f"{count:,}"] for reason, count in missed.items() if count]
    lost += [["false positive", FALSE[kind], f"{count:,}"] for kind, count in wrong.items() if count]
    parts = ", ".join(
        f"{per_cent(errors[key]['ap'])} and {per_cent(errors[key]['ap50'])} with {words}"
        for key, words in (
            ("as it is", "its own masks and scores"),
            ("perfect masks", "perfect masks"),
            ("perfect scores", "perfect scores"),
        )
    )
    return (
        f"{table(['changed', 'steps', 'dice loss', 'AP', 'AP50', 'minutes'], rows)}\n\n"
        f"`{found['config']}`, on the {found['images']} validation images that are one tile. The first rows "
        "show the effect of the seed alone; every other row is of one seed. "
        f"{' '.join(dict.fromkeys(measured_on(row['environment']) for row in found['rows'].values()))}\n\n"
        "Where the recipe itself fails on these images, at IoU 0.5 (`solo-attn eval --errors`): "
        f"{sum(missed.values()):,} of {errors['objects']:,} objects are missed.\n\n"
        f"{table(['error', 'why', 'count'], lost, words=2)}\n\n"
        f"AP and AP50 are {parts}."
    )


def demo() -> str:
    """Tables 3 and 4 on synthetic scenes."""
    result = stored.kept("demo")
    if not result:
        return "Not measured yet."
    limit = result["summary"]["max_detections"]
    rows = {
        system: [CocoMetrics(**seed, max_detections=limit) for seed in found["seeds"]]
        for system, found in result["summary"]["systems"].items()
    }
    count = len(next(iter(rows.values())))
    runs = [run for runs in result["runs"].values() for run in runs]
    minutes = [run["seconds"] / 60 for run in runs]
    return (
        f"{paper_table3(rows)}\n{paper_table4(rows)}\n"
        f"On the scenes' validation part, {count} seed{'s' if count > 1 else ''}; `make demo` trains the "
        f"first, the three systems at a time, each of them {min(minutes):.1f} to {max(minutes):.1f} minutes. "
        f"{' '.join(dict.fromkeys(measured_on(run['environment']) for run in runs))}\n\n"
        "![Ground truth and the three systems on the same scenes](images/demo_figure5.png)"
    )


def unmeasured() -> str:
    """Measurements that are missing in the stored files."""
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
        lines.append("Anything on a GPU: the kernels are tested for correctness, not for speed.")
    return "\n".join(f"- {line}" for line in lines) or "- Nothing else that this page reports."


BLOCKS: dict[str, Callable[[], str]] = {
    "nuclei": nuclei,
    "recipe": recipe,
    "comparisons": comparisons,
    "attention_scale": attention_scale,
    "demo": demo,
    "loses": where_it_loses,
    "unmeasured": unmeasured,
}
