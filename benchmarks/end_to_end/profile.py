"""Where the time of a prediction and of a training step goes, and what the same network takes alone.

python -m benchmarks.end_to_end.profile

The paper's model at 1344 x 672, one image, random weights (model.py). Each step runs under torch.profiler,
and the time of every operation is counted for the outermost part that it belongs to. Then the step and the
network alone take turns: backbone, pyramid, category branch, the mask tower of the levels with chosen cells
and these cells' output convolutions; in training the gradients of their sum. The network alone has no ops of
this library, no losses, no optimizer, and no step before the batch or after the logits.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from solo_attn.bench import Quiet, Race, environment, run_until_steady, wait_until_quiet
from solo_attn.models import SOLO

from ..report.stored import CPU, RESULTS
from .jobs import DTYPES, WHAT
from .model import PAPER, TINY, Setting, images_of, model_of, set_candidates, targets_of
from .run import infer, train_step

NETWORK = ("convolutions", "norms", "ReLU, pooling, resizing")
OPS, OTHER = "ops of this library", "everything else"
# Beginnings of the names of operations and, in training, of their gradients' operations.
PARTS: Mapping[str, tuple[str, ...]] = {
    NETWORK[0]: ("aten::conv", "aten::addmm", "aten::mm", "aten::bmm"),
    NETWORK[1]: (
        "aten::group_norm",
        "aten::native_group_norm",
        "aten::batch_norm",
        "aten::native_batch_norm",
    ),
    NETWORK[2]: (
        "aten::relu",
        "aten::threshold_backward",
        "aten::max_pool2d",
        "aten::upsample",
    ),
    OPS: ("solo_attn::",),
    "optimizer": ("Optimizer.step",),
}
STEP = "step"
PROFILES = 5  # of which the median of each part counts


def part_of(names: Iterable[str]) -> str:
    """The part that an operation belongs to, of its own name and those around it, outermost first."""
    for name in names:
        for part, beginnings in PARTS.items():
            if name.startswith(beginnings):
                return part
    return OTHER


def profiled(step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each part of one run; Python between the operations is part of `OTHER`."""
    watch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True)
    with watch, torch.profiler.record_function(STEP):
        step()
    seconds: Counter[str] = Counter(dict.fromkeys([*PARTS, OTHER], 0.0))
    for event in watch.events() or []:
        names, above = [event.name], event.cpu_parent
        while above is not None:
            names.append(above.name)
            above = above.cpu_parent
        if names[-1] == STEP:
            seconds[part_of(reversed(names))] += event.self_cpu_time_total / 1e6
    return dict(seconds)


def chosen_cells(model: SOLO, step: Callable[[], Any]) -> dict[int, Tensor]:
    """The cells of each level that a step asks the masks of."""
    cells: dict[int, Tensor] = {}
    given = model.head.masks_of

    def watched(result: Any, chosen: Mapping[int, Tensor], *more: Any) -> Any:
        cells.update(chosen)
        return given(result, chosen, *more)

    model.head.masks_of = watched  # type: ignore[method-assign]
    try:
        step()
    finally:
        del model.head.masks_of
    assert cells, "a step that asks for masks"
    return cells


def network(model: SOLO, batch: Tensor, cells: Mapping[int, Tensor]) -> list[Tensor]:
    """Category logits of all levels, and mask logits of the cells at the tower's size."""
    result = model.features(batch)
    outputs = list(result.category_logits)
    result = model.head.prepare(result, dict.fromkeys(cells))
    assert result.maps is not None
    for level, chosen in cells.items():
        output = model.head.mask_outputs[level]
        cell = chosen[:, 1]
        outputs.append(F.conv2d(result.maps[level].maps[0], output.weight[cell], output.bias[cell]))
    return outputs


def alone(model: SOLO, batch: Tensor, cells: Mapping[int, Tensor], training: bool, cast: Any) -> None:
    """The network's forward pass, in training with its backward pass."""
    with torch.set_grad_enabled(training), cast():
        outputs = network(model, batch, cells)
    if training:
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
        model.zero_grad()


def measure(
    model: SOLO, what: str, dtype: str, setting: Setting, rounds: int, quiet: Callable[[], Quiet]
) -> dict[str, Any]:
    """A row of the result: parts of a step, its time and that of the network alone."""
    images, targets = images_of(setting, 1, "cpu"), targets_of(setting, 1, "cpu")
    set_candidates(model.eval(), images, setting.candidates)
    training = what == "training"
    model.train(training)
    cast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    if training:
        # A learning rate of 0 costs the same, and every step finds the same weights.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        step = functools.partial(train_step, model, optimizer, images, targets, cast)
    else:
        step = functools.partial(infer, model, images, cast)
    cells = chosen_cells(model, step)
    batch = model.transform(images)[0].tensors
    found = quiet()
    profiles = [profiled(step) for _ in range(PROFILES if rounds else 1)]
    race = Race({"step": step, "alone": functools.partial(alone, model, batch, cells, training, cast)})
    spread = None
    if rounds:
        spread = run_until_steady(race, rounds)
    else:
        race.round()
    times = race.times()
    return {
        "what": what,
        "dtype": dtype,
        "cells": {str(level): len(chosen) for level, chosen in cells.items()},
        "parts": {part: median(one[part] for one in profiles) for part in profiles[0]},
        "seconds": {name: time.as_dict() for name, time in times.items()},
        "ratio": times["step"].median / times["alone"].median,
        "spread": spread,
        "busy": found.busy,
        "waited": found.waited,
    }


def main(
    rounds: Annotated[int, typer.Option(help="Of each batch of a race; there are three at least.")] = 3,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
    dry_run: Annotated[bool, typer.Option(help="Tiny sizes, one round, nothing stored.")] = False,
) -> None:
    """Measure predictions and training steps, float32 and bfloat16, and store profile.json."""
    torch.set_num_threads(threads)
    setting = TINY if dry_run else PAPER
    quiet = (lambda: Quiet(None, 0.0)) if dry_run else wait_until_quiet
    model = model_of(setting, "cpu")
    rows = []
    for what in WHAT:
        for dtype in DTYPES:
            row = measure(model, what, dtype, setting, 0 if dry_run else rounds, quiet)
            typer.echo(json.dumps(row))
            rows.append(row)
    if not dry_run:
        result = {
            "environment": environment("cpu"),
            "size": setting.size,
            "candidates": setting.candidates,
            "objects": setting.objects,
            "rows": rows,
        }
        (RESULTS / CPU / "profile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
