"""Images per second and peak memory of training and inference, ours and dense: `make gpu-end-to-end`.

The paper's model with grid attention at 1344 x 672, random weights (model.py). "fast" is this
library as it comes, "dense" makes every cell's mask on every level in plain PyTorch (dense_solo.py); each
also with torch.compile. Before they are timed, all must give the same losses, gradients of three weights,
and instances, at batch 1 in float32. Contenders take turns in one process, medians count. Weights and the
optimizer's state are shared by all, and in nobody's peak. A piece that ends with status 75 has left
something out; the next one goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from solo_attn.bench import Race, environment, peak_memory

from ..report.stored import folder_of
from .dense_solo import Compiler
from .jobs import BATCHES, DTYPES, Job, in_words, job_name, jobs, same_race
from .memory import free, keep_to_memory
from .model import (
    PAPER,
    TINY,
    Setting,
    candidates_of,
    contenders,
    images_of,
    model_of,
    set_candidates,
    targets_of,
)
from .proof import DifferentError, FailedError, Proof, prove, watched

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h, which the Makefile goes on after
COMPILED = {
    "fast, compiled": "with fullgraph: the batch to category logits (backbone, FPN, category branch), and "
    "the mask towers; not: the chosen cells' masks, the ops, and what follows",
    "dense, compiled": "with fullgraph: the batch and its targets to both losses, the batch to category "
    "scores and all probability maps; not: choosing candidates, and what follows",
}

app = typer.Typer(help=__doc__)


def race(
    runs: dict[str, Callable[[], Any]], device: str, seconds: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Times and peak memory of the contenders that can run, and why the others cannot."""
    left, failed = {name: watched(name, run) for name, run in runs.items()}, {}
    while left:
        try:
            peaks = {}
            for name, run in left.items():
                run()  # compiles, tunes
                peaks[name] = peak_memory(run, device)
            started = Race(left, device)
            for _ in range(started.affordable(seconds, least=3, most=30) if seconds else 1):
                started.round()
            times = started.times()
            return {n: {"seconds": times[n].as_dict(), "peak_bytes": peaks[n]} for n in left}, failed
        except FailedError as failure:
            failed[failure.name] = failure.reason
            del left[failure.name]
        free(device)
    return {}, failed


def train_step(
    losses_of: Callable[..., Any], optimizer: torch.optim.Optimizer, images: Any, targets: Any, cast: Any
) -> None:
    """Forward, loss, backward, optimizer; the gradients go, so that they count in every step's peak."""
    with cast():
        losses = losses_of(images, targets)
    sum(losses.values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def infer(instances_of: Callable[..., Any], images: Any, cast: Any) -> Any:
    """From images to final masks."""
    with torch.no_grad(), cast():
        return instances_of(images)


@dataclass
class Bench:
    """One model on one device; ``seconds`` of a race's rounds, of which are at least three; 0 for one."""

    setting: Setting
    device: str
    seconds: float
    compiler: Compiler

    def __post_init__(self) -> None:
        self.model = model_of(self.setting, self.device)
        # A learning rate of 0 costs the same, and every step finds the same weights.
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def prepare(self, batch: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Images and targets; the model has its candidates on them."""
        images = images_of(self.setting, batch, self.device)
        set_candidates(self.model, images, self.setting.candidates)
        return images, targets_of(self.setting, batch, self.device)

    def prove(self, compiled: bool) -> Proof:
        """At batch 1 in float32, convolutions included.

        Raises:
            DifferentError: this library does not give what the dense way gives.
        """
        images, targets = self.prepare(1)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            proof = prove(self.model, images, targets, self.compiler if compiled else None)
        free(self.device)
        for what, found in proof.items():
            if "failed" in found["fast"]:
                raise DifferentError(f"{what}: {found['fast']['failed']}")
        return proof

    def measure(self, job: Job, unproven: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[int]]:
        """One race: a row for each contender, and how many candidates each level has.

        ``unproven``: contenders that have a row, but are not run, and why.
        """
        what, batch, dtype, compiled = job
        images, targets = self.prepare(batch)
        cast = functools.partial(
            torch.autocast, self.device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"
        )
        with cast():
            candidates = candidates_of(self.model, images)
        runs: dict[str, Callable[[], Any]] = {}
        for name, run in contenders(self.model, what, self.compiler if compiled else None).items():
            if what == "training":
                runs[name] = functools.partial(train_step, run, self.optimizer, images, targets, cast)
            else:
                runs[name] = functools.partial(infer, run, images, cast)
        proven = {name: run for name, run in runs.items() if name not in unproven}
        found, failed = race(proven, self.device, self.seconds)
        failed |= unproven
        rows = []
        for name in runs:
            row: dict[str, Any] = {"what": what, "batch": batch, "dtype": dtype, "contender": name}
            if name in failed:
                row["failed"] = failed[name]
            else:
                row |= found[name] | {"images_per_second": batch / found[name]["seconds"]["median"]}
            rows.append(row)
        return rows, candidates


def begun(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """What an earlier piece stored of the same commit, machine and setting, else ``result`` itself."""
    if not path.exists():
        return result
    found = json.loads(path.read_text(encoding="utf-8"))

    def identity(of: dict[str, Any]) -> list[Any]:
        about = of["environment"]
        # Storing a result is what makes a tree dirty.
        commit = str(about["commit"]).removesuffix("-dirty")
        return [commit, about["device"], about["torch"], of["setting"]]

    known = result["environment"]["commit"] is not None
    return found if known and identity(found) == identity(result) else result


@app.command()
def run(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    batch: Annotated[list[int] | None, typer.Option(help="Images in a batch; 1 and 8 if not given.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; both if not given.")] = None,
    size: Annotated[tuple[int, int], typer.Option(help="Height and width.")] = PAPER.size,
    compiled: Annotated[bool, typer.Option(help="With torch.compile as well.")] = True,
    minutes: Annotated[float, typer.Option(help="What begins later is left out, and listed.")] = 5.5,
    out: Annotated[
        Path | None, typer.Option(help="A folder; benchmarks/results/DEVICE if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Tiny sizes on the CPU: every line, no number.")] = False,
) -> None:
    """Measure, and store end_to_end.json after each race."""
    end = time.monotonic() + 60 * minutes
    if dry_run:
        torch.set_num_threads(1)  # tiny work, which threads would only wait for each other in
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(TINY, "cpu", 0, functools.partial(torch.compile, fullgraph=True, backend="eager"))
            # Once without and once with torch.compile, and with autocast.
            todo = [job for job in jobs((2,), DTYPES, True) if (job[2] == "bfloat16") == job[3]]
            result = go(bench, todo, Path(folder), math.inf)
        failed = [row for row in result["rows"] if "failed" in row]
        typer.echo(f"dry run: {len(result['rows'])} rows, {len(failed)} failed, none of them kept")
        raise typer.Exit(bool(failed))
    if device == "cuda" and not torch.cuda.is_available():
        typer.echo(
            "gpu-end-to-end: PyTorch sees no CUDA device (DRY_RUN=1 goes through it on the CPU)", err=True
        )
        raise typer.Exit(1)
    compiler = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    bench = Bench(dataclasses.replace(PAPER, size=size), device, 10.0, compiler)
    limit = keep_to_memory() if device == "cpu" else None  # what is too large is a row that says so
    todo = list(jobs(batch or BATCHES, dtype or DTYPES, compiled))
    result = go(bench, todo, out or folder_of(device), end, limit)
    typer.echo(f"left out: {'; '.join(result['left_out']) or 'nothing'}")
    raise typer.Exit(TRY_AGAIN if result["left_out"] else 0)


def go(bench: Bench, todo: list[Job], folder: Path, end: float, limit: int | None = None) -> dict[str, Any]:
    """Prove, then race what no earlier piece has, until ``end``; everything that is known by then.

    What torch.compile makes is proven when its first race is due. Stored after each step.

    ``limit``: the bytes that this process may have, which say why a contender was too large.
    """
    tf32 = bench.device == "cuda" and torch.backends.cudnn.allow_tf32
    result = {
        "environment": environment(bench.device),
        "setting": json.loads(json.dumps(dataclasses.asdict(bench.setting))),
        "float32_convolutions": "TensorFloat-32" if tf32 else "float32",
        "weights_bytes": sum(p.numel() * p.element_size() for p in bench.model.parameters()),
        "compiled": COMPILED,
        "proof": bench.prove(False),
        "candidates": {},
        "rows": [],
        "done": [],
    }
    path = folder / "end_to_end.json"
    result = begun(path, result)

    def store() -> None:
        result["left_out"] = [job_name(later) for later in todo if job_name(later) not in result["done"]]
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    store()
    for job in [job for job in todo if job_name(job) not in result["done"]]:
        what, batch, dtype, compiled = job
        if compiled and "dense, compiled" not in result["proof"][what] and time.monotonic() < end:
            result["proof"] = bench.prove(True)
            store()
        if time.monotonic() >= end:
            break
        unproven = {name: x["failed"] for name, x in result["proof"][what].items() if "failed" in x}
        rows, candidates = bench.measure(job, unproven)
        result["rows"] = [row for row in result["rows"] if not same_race(row, rows[0])] + rows
        result["candidates"][f"batch {batch}, {dtype}"] = candidates
        result["done"].append(job_name(job))
        for row in rows:
            if "failed" in row:
                row["limit_bytes"] = limit
            typer.echo(f"{job_name(job)}: {row['contender']} {in_words(row)}")
        store()
    return result


if __name__ == "__main__":
    app()
