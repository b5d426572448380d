"""The generated parts of docs/results.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby, product
from typing import Any

from solo_attn.evaluation import CocoMetrics, paper_table3, paper_table4
from solo_attn.evaluation.errors import FALSE, MISSED

from ..end_to_end.jobs import BATCHES, DTYPES, WHAT, job_name, why_failed
from . import scaling, speed, stored
from .comparisons import DATA, comparisons, stored_ones
from .gpu_section import gpu_section
from .profile_section import profile
from .stored import CPU, measured_on, per_cent, table
from .where_it_loses import where_it_loses

GPU_FILES = ("gpu", "end_to_end", *(f"comparison_{name}" for name in DATA))


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


def measured_where() -> str:
    """Machine and commit of both halves of the benchmarks."""
    halves = (("ops", "the ops"), ("mmdet", "what is compared with mmdetection 3.3.0"))
    told = ((what, stored.kept(name)) for name, what in halves)
    return "; ".join(
        f"{what} {measured_on(found['environment']) if found else 'not yet'}" for what, found in told
    )


def beside_others() -> str:
    """This library compared with others, and with the floor."""
    memory = speed.memory_line(stored.kept)
    remarks = f"Peak memory beyond the inputs: {memory}.\n\n" if memory else ""
    plot = "![How many times as fast as plain PyTorch and torch.compile each op is](images/speed.svg)"
    return (
        f"{speed.speed_table(stored.kept)}\n\n{remarks}"
        f"{plot if stored.kept('ops') else 'The ops have not been measured yet.'}\n\n"
        f"{speed.HOW} {speed.how_quiet(stored.kept)} Measured: {measured_where()}."
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


def ops() -> str:
    """Each op compared with plain PyTorch, torch.compile and the floor."""
    if not stored.kept("ops"):
        return "Not measured yet."
    return (
        f"{speed.op_table(stored.kept)}\n\n"
        f"{speed.HOW} MiB: peak memory beyond the inputs. Measured: {measured_where()}."
    )


def shown(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """One contender's numbers, and its speed relative to the dense one."""
    if "failed" in row:
        return [row["contender"], why_failed(row), "–", "–", "–"]
    ratio = "–"
    if "failed" not in base:
        ratio = speed.times(row["images_per_second"] / base["images_per_second"])
    peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}"
    median = speed.milliseconds(row["seconds"]["median"])
    return [row["contender"], f"{row['images_per_second']:.3g}", median, ratio, peak]


def end_to_end_of(machine: str, found: dict[str, Any]) -> str:
    """One machine's table; "fast" is this library, "dense" makes every mask of every cell."""
    rows = []
    for _, group in groupby(found["rows"], lambda row: (row["what"], row["batch"], row["dtype"])):
        same = list(group)
        base = next((row for row in same if row["contender"] == "dense"), {"failed": "not run"})
        rows += [[f"{row['what']}, batch {row['batch']}, {row['dtype']}", *shown(row, base)] for row in same]
    head = ["work", "contender", "images/s", "ms", "times dense", "MiB"]
    height, width = found["setting"]["size"]
    ran = {row["contender"] for row in found["rows"]}
    compiled = "".join(f'"{k}": {what}. ' for k, what in found.get("compiled", {}).items() if k in ran)
    proven = "; the compiled code was not compared" if compiled else ""
    if "dense, compiled" in found["proof"]["inference"]:
        proven = ", and so did what torch.compile made of them for that, or its rows say what it did"
    left_out = "; ".join(absent(found)) or "nothing"
    return (
        f"### {machine}\n\n{table(head, rows, words=2)}\n\n"
        f"{width} x {height}; before the timing, fast and dense had the same losses, gradients of "
        f"three weights, and instances at batch 1 in float32{proven}. "
        f"Convolutions of float32: {found.get('float32_convolutions', 'float32')}. MiB: peak beyond weights, "
        f"optimizer and batch. {compiled}Not measured: {left_out}. "
        f"{measured_on(found['environment'])}"
    )


def end_to_end() -> str:
    """Images a second and peak memory of the whole model."""
    found = ((machine, stored.kept("end_to_end", machine)) for machine in stored.machines())
    return "\n\n".join(end_to_end_of(*pair) for pair in found if pair[1]) or "Not measured yet."


def absent(found: dict[str, Any]) -> list[str]:
    """The races without rows in an end-to-end measurement, or without rows of torch.compile."""
    ran = {(row["what"], row["batch"], row["dtype"], row["contender"]) for row in found["rows"]}
    lines = []
    for race in product(WHAT, BATCHES, DTYPES):
        if any((*race, contender) not in ran for contender in ("fast", "dense")):
            lines.append(job_name((*race, False)))
        elif any((*race, f"{contender}, compiled") not in ran for contender in ("fast", "dense")):
            lines.append(job_name((*race, True)))
    return lines


def gpu() -> str:
    """Which measurements were made on which GPU."""
    parts = []
    for machine in stored.machines():
        there = [name for name in GPU_FILES if machine != CPU and stored.kept(name, machine)]
        if there:
            missing = [name for name in GPU_FILES if name not in there]
            parts.append(
                f"### {machine}\n\nStored: {', '.join(there)}. Not measured: {', '.join(missing) or 'none'}."
            )
        if "gpu" in there:
            parts.append(gpu_section(machine, stored.kept("gpu", machine)))
    return "\n\n".join(parts) or "**Nothing has been measured on a GPU.**"


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
    "beside_others": beside_others,
    "ops": ops,
    "threads": scaling.threads,
    "builds": scaling.builds,
    "growth": scaling.growth,
    "end_to_end": end_to_end,
    "profile": profile,
    "huge_pages": scaling.huge_pages,
    "gpu": gpu,
    "loses": where_it_loses,
    "unmeasured": unmeasured,
}
