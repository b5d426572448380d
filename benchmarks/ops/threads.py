"""How ops on chosen cells scale from one thread to two: one mask, few large ones, many small ones.

python -m benchmarks.ops.threads

Both numbers of threads take turns in one process, and medians count. There are several processes, one after
the other, since what is gained differs from one to the next. Four floors stand beside them: the same call on
one tiny mask, which no thread can share (Python, dispatch, autograd); masks of which nothing is set, where
the op only gets and clears the memory of its result; what PyTorch takes to write as much memory that is there
already, in which threads share little but the bandwidth; and arithmetic of PyTorch's that hardly needs
memory, of which a second core could take the half.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from solo_attn import ops
from solo_attn.bench import Race, environment, run_until_steady, wait_until_quiet
from solo_attn.bench.inputs import cell_logits

from ..end_to_end.child import in_child
from ..report.stored import CPU, RESULTS

SIDE = 40
LARGE, SMALL, TINY = (168, 336), (42, 84), (6, 9)  # size of the coarse logits
COUNTS: dict[str, tuple[int, tuple[int, int]]] = {
    "1 mask": (1, LARGE),
    "4 large masks": (4, LARGE),
    "500 small masks": (500, SMALL),
}
WRITTEN = 106 << 20  # bytes: the largest result, of the many small masks
COMPUTED = 1 << 18  # numbers of the arithmetic
STARTED = 40_000  # numbers whose sign PyTorch changes: the least that it starts threads for is 32,768
PROCESSES = 5
CALL = ", one tiny mask"
Run = Callable[[], Any]


def large_masks(count: int, level: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Coarse logits and attention rows of ellipses that fill most of the image, each a little smaller."""

    def drawn(size: tuple[int, int]) -> Tensor:
        y, x = (torch.linspace(-1, 1, n) for n in size)
        distance = (y[:, None].square() + x[None, :].square()).sqrt()
        return torch.stack([(12 * (0.95 - 0.1 * k / count - distance)).clamp(-6, 5) for k in range(count)])

    return drawn(level), torch.tanh(drawn((SIDE, SIDE)) / 4)


def runs_of(coarse: Tensor, attention: Tensor) -> Iterator[tuple[str, Run]]:
    """Each op on these cells, by the backend cpu."""
    level = (coarse.shape[1], coarse.shape[2])
    size = (2 * level[0], 2 * level[1])
    original = (4 * size[0] - 3, 4 * size[1] - 5)
    arguments = (coarse, attention, size, size)
    yield "mask_bits", functools.partial(ops.mask_bits, *arguments, backend="cpu")
    to_image = (*arguments, (4 * size[0], 4 * size[1]), original)
    yield "paste_masks, bool", functools.partial(ops.paste_masks, *to_image, backend="cpu")
    nothing = (torch.full_like(coarse, -30.0), torch.zeros_like(attention), *to_image[2:])
    yield "paste_masks, bool, nothing set", functools.partial(ops.paste_masks, *nothing, backend="cpu")
    yield "paste_masks, COCO RLE", functools.partial(ops.paste_masks, *to_image, rle=True, backend="cpu")
    leaves = [coarse.detach().requires_grad_(), attention.detach().requires_grad_()]
    targets = torch.nn.functional.interpolate(coarse[None], size, mode="bilinear")[0] > 0
    loss = ops.dice_loss(*leaves, targets, backend="cpu").sum()
    yield "dice_loss, backward", functools.partial(torch.autograd.grad, loss, leaves, retain_graph=True)


def with_threads(count: int, run: Run) -> Any:
    torch.set_num_threads(count)
    return run()


def by_threads(run: Run) -> dict[str, Run]:
    """The contenders of a race: the same with one thread and with two."""
    return {str(n): functools.partial(with_threads, n, run) for n in (1, 2)}


def seconds_of(runs: Mapping[str, Run], seconds: float) -> dict[str, Any]:
    """The times of one race, as long as they need to be steady; of one round if ``seconds`` is 0."""
    race = Race(runs)
    row: dict[str, Any] = {}
    if seconds:
        row["busy"] = wait_until_quiet().busy
        row["spread"] = run_until_steady(race, race.affordable(seconds, least=1))
    else:
        race.round()
    return {"seconds": {name: times.as_dict() for name, times in race.times().items()}, **row}


def measured(seconds: float) -> dict[str, dict[str, Any]]:
    """In this process: the races of `seconds_of`; tiny ones if ``seconds`` is 0."""
    tiny = not seconds
    less = 128 if tiny else 1
    numbers, more = torch.ones(STARTED), torch.linspace(1, 6, COMPUTED // less)
    memory = torch.zeros(WRITTEN // less, dtype=torch.uint8)

    def race(run: Run) -> dict[str, Any]:
        return seconds_of(by_threads(run), seconds)

    found = {
        "start": race(functools.partial(torch.neg, numbers)),
        "computed": race(functools.partial(torch.lgamma, more)),
        "memory": race(functools.partial(memory.fill_, 1)),
    }
    for op, run in runs_of(*large_masks(1, TINY)):
        found[op + CALL] = seconds_of({"1": functools.partial(with_threads, 1, run)}, seconds)
    for what, (count, level) in COUNTS.items():
        draw = large_masks if level == LARGE else functools.partial(cell_logits, side=SIDE)
        for op, run in runs_of(*draw(count, TINY if tiny else level)):
            found[f"{op}, {what}"] = race(run)
    return found


def together(races: list[dict[str, Any]]) -> dict[str, Any]:
    """One race in several processes: the times of each, and how busy and how unsteady the worst was."""
    found: dict[str, Any] = {
        "seconds": {name: [race["seconds"][name] for race in races] for name in races[0]["seconds"]}
    }
    for worst in ("busy", "spread"):  # not of a single round; no system but Linux says how busy it is
        values = [race[worst] for race in races if race.get(worst) is not None]
        found[worst] = max(values, default=None)
    return found


def result_of(processes: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What is stored of these processes."""
    races = {name: together([found[name] for found in processes]) for name in processes[0]}
    ops = [name.removesuffix(CALL) for name in races if name.endswith(CALL)]
    rows = [
        {
            "op": op,
            "masks": masks,
            "level": level,
            "call": races[op + CALL]["seconds"]["1"],
            **races[f"{op}, {masks}"],
        }
        for masks, (_, level) in COUNTS.items()
        for op in ops
    ]
    memory = {"bytes": WRITTEN, **races["memory"]}
    return {"start": races["start"], "computed": races["computed"], "memory": memory, "rows": rows}


def main(
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Of a batch of rounds; a race has three or more.")
    ] = 0.3,
    dry_run: Annotated[bool, typer.Option(help="Tiny masks, one round and process, nothing stored.")] = False,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure every op and store threads.json."""
    torch.set_num_threads(2)
    if child:
        print(json.dumps(measured(0 if dry_run else seconds)))
        return
    where, processes = environment("cpu"), []
    for _ in range(1 if dry_run else PROCESSES):
        processes.append(
            in_child("ops.threads", "--seconds", str(seconds), *(["--dry-run"] if dry_run else []))
        )
        for name, race in processes[-1].items():
            if "2" in race["seconds"]:
                one, two = (race["seconds"][n]["median"] for n in ("1", "2"))
                typer.echo(f"{name}: {1e3 * one:.3g} ms, with 2 threads {one / two:.2f}x as fast")
    if not dry_run:
        text = json.dumps({"environment": where, **result_of(processes)}, indent=1)
        (RESULTS / CPU / "threads.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
