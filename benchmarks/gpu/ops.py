"""The speed of the ops on this machine's GPU, and its best rates: `make gpu-bench`, 8 minutes.

Each op at the paper's sizes, batch 1, 2 and 8, float32 and bfloat16, forward and backward, against plain
PyTorch and torch.compile of that (batch 1); each of ours is held against PyTorch in float32 before.
Contenders take turns; times are CUDA events, medians, from a cold L2 cache and without the host's part
(timing.py; what that could not be taken from is listed as host_bound). The floor of a case is what its
bytes and flops take at the rates of a copy and a matrix product measured in the same run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from solo_attn import BitMasks
from solo_attn.bench import CASES, COMPILED, PLAIN, Case, agree, backends, environment, peak_memory
from solo_attn.bench.cases import attention_residual

from ..report.stored import folder_of
from . import inference_path
from .timing import GpuRace

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCHES = (1, 2, 8)
# S and feature size of the paper's other levels (Table 2); the first is what every case has.
LEVELS = ((36, (84, 168)), (24, (42, 84)), (16, (21, 42)), (12, (21, 42)))
TINY: dict[str, dict[str, Any]] = {
    "grid_attention": {"channels": 8, "side": 4},
    "attention_residual": {"channels": 8, "side": 4, "size": (6, 9)},
    "matrix_nms": {"count": 9, "size": (8, 9)},
    "mask_iou": {"count": 9, "size": (8, 9)},
    **{
        op: {"count": 3, "level": (4, 6), "side": 3}
        for op in ("upsample_add", "dice_loss", "mask_bits", "paste_masks")
    },
}
TINY["paste_masks"]["original"] = (30, 50)

app = typer.Typer(no_args_is_help=True, help=__doc__)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The device, and its best rates.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        rates: bytes a second of a copy, read and written; flops a second of matrix products.
    """

    device: str
    rates: dict[str, float]

    def floor(self, moved: int, flops: int, dtype: str) -> float:
        """The lower bound in seconds, from memory traffic and arithmetic."""
        return max(moved / self.rates["copy"], flops / self.rates[f"matmul {dtype}"])


def measure_rates(device: str, dry: bool) -> dict[str, float]:
    """The best rates of a copy and of matrix products on this machine."""
    numbers, side = (1 << 12, 32) if dry else (1 << 28, 8192)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    for name, dtype in DTYPES.items():
        a = torch.randn(side, side, device=device, dtype=dtype)
        runs[f"matmul {name}"] = functools.partial(torch.mm, a, a)
    race = GpuRace(runs, device)
    for _ in range(1 if dry else 10):
        race.round()
    work = {"copy": 2 * 4 * numbers, **{name: 2 * side**3 for name in runs if name != "copy"}}
    return {name: work[name] / times.median for name, times in race.times().items()}


def batched(case: Case, batch: int, dtype: torch.dtype) -> Case:
    """The case for several images: more rows, and labels or numbers of images that differ between them."""

    def repeat(x: Tensor) -> Tensor:
        x = x.to(dtype) if x.is_floating_point() else x
        step = int(x.max()) + 1 if x.dtype == torch.int64 else 0
        return torch.cat([x + step * k if step else x for k in range(batch)])

    return dataclasses.replace(case, inputs=tuple(map(repeat, case.inputs)))


def cases(device: str, dry: bool, batch: int, dtype: torch.dtype) -> Iterator[Case]:
    """All cases of one batch size and dtype."""
    for op, makers in CASES.items():
        sizes = TINY[op] if dry else {}
        for maker in makers:
            if maker.__name__ != "paste_masks_rle":  # it ends on the host
                yield batched(maker(device, **sizes), batch, dtype)
    if batch == 1 and not dry:
        for side, (h, w) in LEVELS:
            yield batched(attention_residual(device, side=side, size=(2 * h, 2 * w)), 1, dtype)


def tensors(out: Any) -> list[Tensor]:
    """The tensors of a result of any type."""
    if isinstance(out, BitMasks):
        return [out.words, out.areas, out.maskness]
    return list(out) if isinstance(out, (tuple, list)) else [out]


def bytes_of(values: list[Tensor]) -> int:
    """Bytes that are read or written once."""
    return sum(x.numel() * x.element_size() for x in values)


def flops_of(case: Case) -> int:
    """Flops of the matrix product that a case needs: half of it if the result is symmetric."""
    if case.op not in ("grid_attention", "attention_residual"):
        return 0
    batch, channels, side, _ = case.inputs[0].shape
    return int(batch * channels * side**4)


def size_of(case: Case) -> int:
    """The size in solo_attn/backends/order.py: elements of the op's first tensor, or of its result."""
    if case.op == "grid_attention":
        batch, _, side, _ = case.inputs[0].shape
        return int(batch * side**4)
    return int(case.inputs[case.op == "attention_residual"].numel())


def prove(run: Callable[..., Any], case: Case) -> None:
    """Refuse a result that differs from PyTorch's in float32 for the same inputs.

    Raises:
        AssertionError: it is not; no time is taken then.
    """
    wide = [x.float() if x.is_floating_point() else x for x in case.inputs]
    out, expected = run(*(x.clone() for x in case.inputs)), case.plain(*wide)
    if case.inputs[0].dtype == torch.float32 or not isinstance(out, Tensor) or not out.is_floating_point():
        agree(out, expected)
    else:
        room = 2.0**-7 * max(1e-3, float(expected.abs().max()))
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=room)


def contenders(case: Case, device: str, dry: bool, compiled: bool) -> dict[str, Callable[..., Any]]:
    """Our backends, each checked, and then PyTorch's contenders."""
    names = [name for name in backends(case.op, device) if name != "reference" or dry]
    found: dict[str, Callable[..., Any]] = {name: functools.partial(case.kernel, name) for name in names}
    for run in found.values():
        prove(run, case)
    found[PLAIN] = case.plain
    if compiled:
        torch._dynamo.reset()
        found[COMPILED] = torch.compile(case.plain, dynamic=False, backend="eager" if dry else "inductor")
    return found


def race(runs: dict[str, Callable[[], Any]], device: str, dry: bool) -> dict[str, Any]:
    """Median times and peak memory of each contender."""
    memory = {name: peak_memory(run, device) for name, run in runs.items()}
    started = GpuRace(runs, device)
    for _ in range(1 if dry else started.affordable(0.5, least=5, most=30)):
        started.round()
    times = {name: found.as_dict() for name, found in started.times().items()}
    return {"seconds": times, "memory": memory, "host_bound": started.host_bound}


def forward(
    case: Case, runs: dict[str, Callable[..., Any]], machine: Machine, dtype: str, dry: bool
) -> dict[str, Any]:
    """The contenders without an autograd graph."""
    with torch.no_grad():
        result = race({n: functools.partial(f, *case.inputs) for n, f in runs.items()}, machine.device, dry)
        out = next(iter(runs.values()))(*case.inputs)
    moved = bytes_of([*case.inputs, *tensors(out)])
    return {**result, "floor": machine.floor(moved, flops_of(case), dtype), "bytes": moved}


def prove_gradients(runs: dict[str, Callable[..., Any]], case: Case) -> dict[str, Callable[[], Any]]:
    """Each contender's backward pass, ready to be timed.

    Raises:
        AssertionError: its gradients are not plain PyTorch's.
    """
    ready: dict[str, Callable[[], Any]] = {}
    for name, run in runs.items():
        leaves = [x.detach().requires_grad_() for x in case.inputs[: case.differentiable]]
        out = run(*leaves, *case.inputs[case.differentiable :])
        upstream = torch.randn(
            out.shape, generator=torch.Generator(out.device).manual_seed(0), device=out.device
        )
        upstream = upstream.to(out.dtype)
        ready[name] = functools.partial(torch.autograd.grad, out, leaves, upstream, retain_graph=True)
    expected = ready[PLAIN]()
    for f in ready.values():
        for grad, other in zip(f(), expected, strict=True):
            room = (1e-3 if grad.dtype == torch.float32 else 2.0**-5) * max(1e-3, float(other.abs().max()))
            torch.testing.assert_close(grad, other, rtol=0, atol=room)
    return ready


def backward(case: Case, runs: dict[str, Callable[..., Any]], machine: Machine, dry: bool) -> dict[str, Any]:
    """The backward passes alone, after their gradients were compared."""
    ready = prove_gradients(runs, case)
    return race(ready, machine.device, dry)


def lazy(device: str, dry: bool) -> list[dict[str, Any]]:
    """The inference path, ours (of all levels at once, and level by level) and the dense one, both dtypes."""
    found = []
    sizes = inference_path.TINY if dry else inference_path.PAPER
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            path = inference_path.make(sizes, device, dtype)
            wide = inference_path.make(sizes, device, torch.float32).dense()
            ours: dict[str, Callable[[], Any]] = {
                "lazy": functools.partial(path.lazy, None),
                "lazy, level by level": functools.partial(path.one_by_one, None),
            }
            for run in ours.values():
                inference_path.agree(run(), wide, dtype)
            found.append({"dtype": name, **race({**ours, "dense": path.dense}, device, dry)})
    return found


@app.command()
def run(
    dry_run: Annotated[bool, typer.Option(help="Tiny sizes on the CPU: every line, no number.")] = False,
    minutes: Annotated[float, typer.Option(help="What begins later is left out, and listed.")] = 7.0,
    out: Annotated[Path | None, typer.Option(help="A folder; benchmarks/results/GPU if not given.")] = None,
) -> None:
    """Measure, and store gpu.json."""
    if not dry_run and not torch.cuda.is_available():
        typer.echo("gpu-bench: PyTorch sees no CUDA device (DRY_RUN=1 goes through it on the CPU)", err=True)
        raise typer.Exit(1)
    device, end = "cpu" if dry_run else "cuda", time.monotonic() + 60 * minutes
    machine = Machine(device, measure_rates(device, dry_run))
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    result = {"environment": environment(device), "rates": machine.rates, "lazy": lazy(device, dry_run)}
    for batch in BATCHES:
        for name, dtype in DTYPES.items():
            for case in cases(device, dry_run, batch, dtype):
                about: dict[str, Any] = {"op": case.op, "what": case.what, "batch": batch, "dtype": name}
                if time.monotonic() > end:
                    left_out.append(" ".join(map(str, about.values())))
                    continue
                about["size"] = size_of(case)
                runs = contenders(case, device, dry_run, compiled=batch == 1)
                found.append({**about, "direction": "forward", **forward(case, runs, machine, name, dry_run)})
                if case.differentiable:
                    found.append({**about, "direction": "backward", **backward(case, runs, machine, dry_run)})
                typer.echo(f"{case.op}, {case.what}, batch {batch}, {name}")
    result |= {"cases": found, "left_out": left_out}
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            store(result, Path(folder))
        typer.echo(f"dry run: {len(found)} measurements, none of them kept")
        return
    store(result, out or folder_of(device))
    typer.echo(f"left out: {', '.join(left_out) or 'nothing'}")


def store(result: dict[str, Any], folder: Path) -> None:
    """Store the numbers, and the plot of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    typer.echo(folder / "gpu.json")
    plot(folder / "gpu.json")


@app.command()
def plot(stored: Annotated[Path, typer.Argument(help="gpu.json that `run` stored.")]) -> None:
    """Draw the plot again from the stored times."""
    try:
        from ..report.gpu_section import draw
    except ModuleNotFoundError as missing:  # measuring must not need it
        typer.echo(f"no picture ({missing}); later: python -m benchmarks.gpu.ops plot {stored}")
        return
    draw(json.loads(stored.read_text(encoding="utf-8")), stored.with_suffix(".png"))


if __name__ == "__main__":
    app()
