"""``solo-attn compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .._utils.console import plain_console
from .._utils.errors import UsageError
from .._utils.files import check_output
from .app import ConfigFile, Overrides, command

if TYPE_CHECKING:
    from ..training import Comparison

TRY_AGAIN = 75  # exit status where more remains to be done: EX_TEMPFAIL of sysexits.h


@command
def compare(
    config: ConfigFile,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds for each system.")] = 3,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs and tables.")] = Path("runs/compare"),
    forms: Annotated[
        bool,
        typer.Option(
            "--forms", help="Also train the other forms of the attention, with the paper's literal formula."
        ),
    ] = False,
    systems: Annotated[
        Path | None,
        typer.Option("--systems", help="YAML of other systems: names, and below each what it changes."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", help="Stop after this many, with exit status 75 if more remains to be done."
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, help="Runs at a time; more than one have processes and train.log each."
        ),
    ] = 1,
) -> None:
    """Train the three systems of the paper's Table 3, or others, over several seeds and tabulate them.

    Example: [cyan]solo-attn compare configs/paper_nuclei.yaml --seeds 3 --out runs/paper_nuclei[/cyan]

    Finished runs are kept: the same command continues where it was stopped. The seeds are train.seed,
    train.seed + 1 and so on. The tables are of data.test_annotations where the configuration has them. A file
    of --systems says, for example, "SOLOv2, light: {model: {head: solov2_light}}" in a line of its own.
    """
    from ..training import UnfinishedError, load_config, read_systems, systems_of
    from ..training import compare as run

    check_output(out, "compare", "--out", folder=True)
    settings, console = load_config(config, overrides or []), plain_console()
    if systems is not None and forms:
        raise UsageError("compare: expected --systems or --forms, got both")
    first = settings.train.seed
    chosen = systems_of(settings, forms=forms) if systems is None else read_systems(systems)
    try:
        comparison = run(
            settings, range(first, first + seeds), out, chosen, minutes=minutes, jobs=jobs, console=console
        )
    except UnfinishedError as error:
        console.print(str(error), soft_wrap=True)
        raise typer.Exit(TRY_AGAIN) from error
    show_comparison(console, comparison)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the table, and the files with the other tables."""
    from ..evaluation import rich_table

    console.print(rich_table(comparison.rows))
    for path in comparison.files:
        console.print(f"  {path}", soft_wrap=True)
