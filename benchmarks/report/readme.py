"""Write what was measured into the README: `make results`.

Each block between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->`` is made from ``results/cpu/NAME.json``,
with the machine and the commit it was measured on; the plots go to ``docs/images``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocotools.mask as coco_mask
import torch
import torch.nn.functional as F
from torchvision.io import write_png
from torchvision.ops import box_convert
from torchvision.transforms.functional import resize
from torchvision.utils import make_grid

from solo_attn.evaluation import CocoMetrics, draw_instances, learning_curve, paper_table3, paper_table4

from .. import ROOT
from . import speed as speed_tables
from . import stored
from .comparisons import DATA, judged, judgements
from .stored import IMAGES, measured_on, per_cent

README = ROOT / "README.md"


def demo() -> str:
    """Tables 3 and 4 on synthetic scenes."""
    result = stored.kept("demo")
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
    result = stored.kept("nuclei")
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
        "What it finds on three test images (scores from 0.3), each instance in a colour of its own:\n\n"
        "![Masks of the nuclei found on three images](docs/images/nuclei_found.png)"
    )


def speed() -> str:
    """This library beside others, and beside the floor."""
    memory = speed_tables.memory_line(stored.kept)
    remarks = f"Peak memory beyond the inputs: {memory}.\n\n" if memory else ""
    plot = "![How many times as fast as plain PyTorch and torch.compile each op is](docs/images/speed.svg)"
    return (
        f"{speed_tables.speed_table(stored.kept)}\n\n{remarks}"
        f"{plot if stored.kept('ops') else 'The ops have not been measured yet.'}\n\n"
        f"{speed_tables.HOW} Each op against everything, what is behind these numbers and where it loses: "
        f"[docs/results.md](docs/results.md). Measured: {measured_where()}."
    )


def measured_where() -> str:
    """Machine and commit of both halves of the benchmarks."""
    halves = (("ops", "the ops"), ("mmdet", "what is compared with mmdetection 3.3.0"))
    told = ((what, stored.kept(name)) for name, what in halves)
    return "; ".join(
        f"{what} {measured_on(found['environment']) if found else 'not yet'}" for what, found in told
    )


def abi() -> str:
    """Under which torch one wheel ran."""
    found = stored.kept("abi")
    return (
        f"Seen: {found['wheel']}, built with torch {found['built_with']}, under torch {found['run_with']}: "
        f"{found['passed']:,} tests of the ops passed, {found.get('skipped', 0)} skipped. "
        f"{measured_on(found['environment'])}"
    )


def attention() -> str:
    """Whether it helped, on each data set that was measured on a CPU."""
    lines = []
    for name, words in DATA.items():
        if result := stored.kept(f"comparison_{name}"):
            told = [
                judged(*compared) for compared in judgements(result) if compared[0].startswith("Attention")
            ]
            lines += [f"- {words[0].upper() + words[1:]}. {line}" for line in told]
    return "\n".join(lines) or "Not measured yet."


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "nuclei": nuclei,
    "attention": attention,
    "speed": speed,
    "abi": abi,
}


def filled(text: str) -> str:
    """``text`` with every block made anew."""
    return stored.filled(text, BLOCKS, README.name)


def draw_found(path: Path) -> None:
    """The masks alone: the photographs stay with their data set."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in stored.kept("nuclei_found"):
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
    learning_curve(stored.kept("nuclei")["curve"], IMAGES / "nuclei_curve.png")
    draw_found(IMAGES / "nuclei_found.png")
    if stored.kept("ops"):
        speed_tables.plot(stored.kept, IMAGES / "speed.svg")
