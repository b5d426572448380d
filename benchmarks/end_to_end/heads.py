"""What each head of the family costs in a prediction, at the size it was published for.

python -m benchmarks.end_to_end.heads

ResNet-50, pyramid of 256 channels, 80 classes, random weights whose masks are neither empty nor full, and
as many candidates for every head. From a batch of one image, resized as published, to its final masks in
COCO's run lengths; heads take turns in one process, medians count.
"""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from solo_attn.bench import Race, environment, peak_memory
from solo_attn.models import SOLO, build_solo
from solo_attn.models.settings import OF_HEADS

from ..report.stored import CPU, RESULTS
from .model import Setting, images_of, set_candidates

CLASSES, CANDIDATES, SHAPE = 80, 200, (3, 4)  # height to width of the image
CASES: dict[str, dict[str, Any]] = {
    **{head: {"head": head, "attention": None} for head in OF_HEADS},
    "solo, attention": {"head": "solo"},
    "solov2, attention": {"head": "solov2", "attention": "gated"},
}
TINY = {"min_size": 64, "max_size": 96, "head_channels": 32, "kernel_channels": 32, "feature_channels": 32}


def model_of(settings: dict[str, Any]) -> SOLO:
    """A model whose masks differ from each other; candidates by `set_candidates`."""
    torch.manual_seed(0)
    model = build_solo(CLASSES, norm="gn", **settings).eval()
    with torch.no_grad():
        for name, module in model.head.named_modules():
            if isinstance(module, nn.Conv2d) and ("output" in name) and "mask_features" not in name:
                factor = 5 if name.startswith(("category", "kernel")) else 20
                module.weight.mul_(factor * (256 / module.in_channels) ** 0.5)
                if name.startswith(("mask", "column", "row")):
                    nn.init.constant_(module.bias, -4.0 if name.startswith("mask") else -1.0)  # type: ignore[arg-type]
    return model


def image_of(model: SOLO) -> Tensor:
    """An image that is not resized: the head's shorter side, in `SHAPE`, multiples of 32."""
    height = model.settings.sizes[-1] // 32 * 32
    return images_of(Setting((height, height * SHAPE[1] // SHAPE[0] // 32 * 32), 0, 0, {}), 1, "cpu")[0]


def main(
    seconds: Annotated[float, typer.Option(help="Of the rounds, of which are at least three.")] = 60.0,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
    dry_run: Annotated[bool, typer.Option(help="Tiny sizes, one round, nothing stored.")] = False,
) -> None:
    """Measure every head and store heads.json."""
    torch.set_num_threads(threads)
    small = {**TINY, "backbone": "resnet18"} if dry_run else {}
    runs, rows = {}, {}
    for name, settings in CASES.items():
        model = model_of({**settings, **small})
        image = image_of(model)
        set_candidates(model, [image], CANDIDATES)
        runs[name] = functools.partial(model.predict, [image], rle=True)
        rows[name] = {
            "size": [*image.shape[1:]],
            "parameters": sum(p.numel() for p in model.parameters()),
            "head_parameters": sum(p.numel() for p in model.head.parameters()),
            "instances": len(runs[name]()[0]["scores"]),
        }
    race = Race(runs)
    for _ in range(1 if dry_run else race.affordable(seconds)):
        race.round()
    for name, times in race.times().items():
        rows[name] |= {"seconds": times.as_dict(), "peak_bytes": peak_memory(runs[name])}
        typer.echo(f"{name}: {times.median:.3f} s, {rows[name]}")
    if not dry_run:
        found = {"environment": environment("cpu"), "candidates": CANDIDATES, "rows": rows}
        (RESULTS / CPU / "heads.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
