"""What PyTorch's own THP_MEM_ALLOC_ENABLE does for a training step and a prediction.

python -m benchmarks.end_to_end.huge_pages

PyTorch reads it once, so each measurement has a process of its own: with and without it in turn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from solo_attn.bench import Times, environment, wait_until_quiet

from ..report.stored import CPU, RESULTS
from .child import in_child
from .model import PAPER, TINY, Setting, images_of, model_of, set_candidates, targets_of

VARIABLE = "THP_MEM_ALLOC_ENABLE"
SETTING = Setting((384, 768), PAPER.candidates, PAPER.objects, PAPER.model)
STEPS = 3


def timed(run: Callable[[], Any]) -> list[float]:
    """Seconds of `STEPS` runs after one that is not counted."""
    found = []
    for _ in range(1 + STEPS):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return found[1:]


def measured(setting: Setting) -> dict[str, list[float]]:
    """In this process: seconds of training steps (gradients included) and of predictions, one image."""
    model = model_of(setting, "cpu")
    images, targets = images_of(setting, 1, "cpu"), targets_of(setting, 1, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()

    model.train()
    training = timed(step)
    model.eval()
    set_candidates(model, images, setting.candidates)
    return {"training step": training, "prediction": timed(lambda: model.predict(images, rle=True))}


def main(
    rounds: Annotated[int, typer.Option(help="Processes with it, and as many without.")] = 3,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
    dry_run: Annotated[bool, typer.Option(help="A tiny model, one round, nothing stored.")] = False,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure both, and store huge_pages.json."""
    torch.set_num_threads(threads)
    setting = TINY if dry_run else SETTING
    if child:
        print(json.dumps(measured(setting)))
        return
    where = environment("cpu")
    busy = None if dry_run else wait_until_quiet().busy
    arguments = ["--threads", str(threads), *(["--dry-run"] if dry_run else [])]
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(1 if dry_run else rounds):
        for value in ("0", "1"):
            measured_there = in_child("end_to_end.huge_pages", *arguments, variables={VARIABLE: value})
            for work, found in measured_there.items():
                seconds.setdefault(work, {}).setdefault(value, []).extend(found)
    rows = {
        work: {value: Times.of(runs).as_dict() for value, runs in found.items()}
        for work, found in seconds.items()
    }
    for work, row in rows.items():
        without, with_it = (row[value]["median"] for value in ("0", "1"))
        typer.echo(f"{work}: {without:.3g} s, with {VARIABLE}=1 {with_it:.3g} s")
    if not dry_run:
        stored = {"environment": where, "busy": busy, "size": setting.size, "rows": rows}
        path = RESULTS / CPU / "huge_pages.json"
        path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
