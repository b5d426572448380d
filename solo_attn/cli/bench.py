"""``solo-attn bench``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from .._utils.console import plain_console, progress
from .._utils.environment import device_named
from .._utils.errors import UsageError
from .app import command

if TYPE_CHECKING:
    from ..bench import Case, Times

SECONDS = 0.5  # of each case, on top of the first runs
# Sizes of the table: those of the benchmarks, with fewer masks at image size, which take PyTorch seconds.
SIZES: Mapping[str, Mapping[str, Any]] = {"paste_masks": {"count": 10}}


@command
def bench(
    op: Annotated[
        list[str] | None, typer.Option("--op", help="Only this op; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")] = "auto",
) -> None:
    """Time each op's kernels on this machine, against plain PyTorch and what the hardware allows.

    Milliseconds, medians of runs that take turns. [bold]floor[/bold]: inputs read once, outputs written once
    and the matrix product if there is one, measured like the rest. Every result is compared with PyTorch's
    before it is timed.
    """

    from ..backends import OPS
    from ..bench import CASES, environment

    chosen = op or list(OPS)
    unknown = [name for name in chosen if name not in OPS]
    if unknown:
        raise UsageError(f"bench: expected --op to be one of {', '.join(OPS)}, got {unknown[0]!r}")
    where = device_named(device)
    cases = [(make, SIZES.get(name, {})) for name in chosen for make in CASES[name]]
    found = []
    with progress("measuring", len(cases)) as advance:
        for make, sizes in cases:
            found.append(_measure(make(where, **sizes), where))
            advance(1)
    facts = environment(where)
    console = plain_console()
    console.print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}")
    console.print(table(found))


def _measure(case: Case, device: str) -> tuple[Case, dict[str, Times]]:
    from ..bench import Race, forward

    race = Race(forward(case, device), device)
    for _ in range(race.affordable(SECONDS, least=1)):
        race.round()
    return case, race.times()


def table(found: list[tuple[Case, dict[str, Times]]]) -> Table:
    """One row for each case: the backends, plain PyTorch, the floor, and the default one against these."""
    from ..bench import FLOOR, PLAIN

    names = list(dict.fromkeys(name for _, times in found for name in times if name not in (PLAIN, FLOOR)))
    shown = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("milliseconds")
    for name in (*names, PLAIN, FLOOR, "times faster", "times floor"):
        shown.add_column(name, justify="right")
    before = None
    for case, times in found:
        if case.op != before:
            shown.add_row(case.op, style="bold")
        shown.add_row(case.what, *_cells(times, names))
        before = case.op
    return shown


def _cells(times: Mapping[str, Times], names: list[str]) -> Iterator[str]:
    from ..bench import FLOOR, PLAIN

    for name in (*names, PLAIN, FLOOR):
        yield f"{1000 * times[name].median:.2f}" if name in times else "–"
    default = next(iter(times.values())).median
    yield f"{times[PLAIN].median / default:.1f}"
    yield f"{default / times[FLOOR].median:.1f}"
