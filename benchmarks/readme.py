"""Write what was measured into the README: `make results`.

Each block between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->`` is made from ``results/cpu/NAME.json``,
with the machine and the commit it was measured on; the plots go to ``docs/images``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocotools.mask as coco_mask
import speed as speed_tables
import torch
import torch.nn.functional as F
from torchvision.io import write_png
from torchvision.ops import box_convert
from torchvision.transforms.functional import resize
from torchvision.utils import make_grid

from solo_attn.evaluation import CocoMetrics, draw_instances, learning_curve, paper_table3, paper_table4

ROOT = Path(__file__).parents[1]
README, IMAGES, RESULTS = (
    ROOT / "README.md",
    ROOT / "docs" / "images",
    ROOT / "benchmarks" / "results" / "cpu",
)


def stored(name: str) -> Any:
    """What ``results/cpu/NAME.json`` holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def measured_on(environment: dict[str, Any], seconds: float | None = None) -> str:
    """Machine, versions and commit of a number, in words."""
    took = "" if seconds is None else f"{seconds / 60:.0f} minutes on "
    return (
        f"({took}{environment['device']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"commit {environment['commit']}, {environment['date'][:10]})"
    )


def per_cent(value: float) -> str:
    """0.1234 as "12.3"; "–" where COCO leaves it undefined."""
    return "–" if value < 0 else f"{100 * value:.1f}"


def demo() -> str:
    """Tables 3 and 4 on synthetic scenes."""
    result = stored("demo")
    limit = result["summary"]["max_detections"]
    rows = {
        system: [CocoMetrics(**seed, max_detections=limit) for seed in found["seeds"]]
        for system, found in result["summary"]["systems"].items()
    }
    seconds = sum(run["seconds"] for runs in result["runs"].values() for run in runs)
    return (
        f"{paper_table3(rows)}\n{paper_table4(rows)}\n"
        f"One seed, minutes of training: a demonstration, not evidence. "
        f"{measured_on(result['environment'], seconds)}\n\n"
        "![Ground truth and the three systems on the same scenes](docs/images/demo_figure5.png)"
    )


def nuclei() -> str:
    """The metrics and the learning curve of configs/nuclei_small.yaml."""
    result = stored("nuclei")
    metrics = result["metrics"]
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    head = " | ".join(key[:2].upper() + key[2:] for key in keys)
    return (
        f"| {head} |\n|{' ---: |' * len(keys)}\n"
        f"| {' | '.join(per_cent(metrics[key]) for key in keys)} |\n\n"
        f"On the test images, with the last epoch's weights (`best.ckpt` is chosen on them, so it is no "
        f"measure), at most {metrics['max_detections']} nuclei an image, {result['steps']:,} steps. "
        f"{measured_on(result['environment'], result['seconds'])}\n\n"
        "![Losses and AP over the steps](docs/images/nuclei_curve.png)\n\n"
        "What it finds on three test images (scores from 0.3), each nucleus in a colour of its own:\n\n"
        "![Masks of the nuclei found on three images](docs/images/nuclei_found.png)"
    )


def attention_scale() -> str:
    """Losses after the same few steps with each scale."""
    found = stored("attention_scale")
    lines = ["| attention scale | dice loss | focal loss | AP50 |", "| --- | ---: | ---: | ---: |"]
    for name, run in found.items():
        lines.append(
            f"| {name} | {run['train/dice']:.3f} | {run['train/loss_category']:.3f} | "
            f"{per_cent(run['metrics']['ap50'])} |"
        )
    first = next(iter(found.values()))
    return "\n".join(lines) + (
        f"\n\n{first['steps']} steps of `configs/nuclei_small.yaml` each, one seed; losses are means of the "
        f"last tenth. A dice loss near 1 means that no mask has been learned. "
        f"{measured_on(first['environment'])}"
    )


def measured() -> bool:
    """Both halves of the benchmarks have been run, and stored."""
    return all((RESULTS / f"{name}.json").exists() for name in ("ops", "mmdet"))


def speed() -> str:
    """What was promised of the kernels, and each op against everything."""

    if not measured():
        return "Not measured yet on a quiet machine."
    missed = speed_tables.missed(stored)
    reasons = [speed_tables.REASONS[name] for name in missed if name in speed_tables.REASONS]
    memory = speed_tables.memory_line(stored)
    remarks = f"Bold rows miss what they should reach. {' '.join(reasons)}\n\n" if missed else ""
    remarks += f"Peak memory beyond the inputs: {memory}.\n\n" if memory else ""
    machines = "; ".join(
        f"{what} {measured_on(stored(name)['environment'])}"
        for name, what in (("ops", "the ops"), ("mmdet", "what is compared with mmdetection 3.3.0"))
    )
    return (
        f"{speed_tables.goal_table(stored)}\n\n"
        f"{remarks}"
        "![How many times as fast as plain PyTorch and torch.compile each op is](docs/images/speed.svg)\n\n"
        f"{speed_tables.op_table(stored)}\n\n"
        "Medians of runs that take turns in one process; every result was compared before it was timed. The "
        "floor reads every input and writes every output once, into memory that is there already, and does "
        f"the matrix product if there is one. Milliseconds. Measured: {machines}."
    )


def abi() -> str:
    """Under which torch one wheel ran."""
    found = stored("abi")
    return (
        f"Seen: {found['wheel']}, built with torch {found['built_with']}, under torch {found['run_with']}: "
        f"{found['passed']:,} tests of the ops passed, {found.get('skipped', 0)} skipped. "
        f"{measured_on(found['environment'])}"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "nuclei": nuclei,
    "attention_scale": attention_scale,
    "speed": speed,
    "abi": abi,
}


def filled(text: str) -> str:
    """``text`` with every block made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- begin:{name} -->\n", f"<!-- end:{name} -->"
        block = f"{begin}{make()}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"readme: expected one block {name} in {README.name}, got {count}")
    return text


def draw_found(path: Path) -> None:
    """The masks alone: the photographs stay with their data set."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in stored("nuclei_found"):
        rows.setdefault(result["file_name"], []).append(result)
    pictures = []
    for results in rows.values():
        masks = torch.from_numpy(coco_mask.decode([r["segmentation"] for r in results])).permute(2, 0, 1)
        found = {
            "masks": masks,
            "boxes": box_convert(torch.tensor([r["bbox"] for r in results]), "xywh", "xyxy"),
            "labels": torch.zeros(len(results), dtype=torch.int64),
        }
        picture = draw_instances(torch.zeros(3, *masks.shape[1:]), found, ["nucleus"], alpha=0.8)
        pictures.append(resize(picture, [320]))
    height, width = (max(p.shape[k] for p in pictures) for k in (1, 2))
    padded = [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures]
    write_png(make_grid(padded, nrow=len(padded), pad_value=255), str(path))


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    learning_curve(stored("nuclei")["curve"], IMAGES / "nuclei_curve.png")
    draw_found(IMAGES / "nuclei_found.png")
    if measured():
        speed_tables.plot(stored, IMAGES / "speed.svg")
