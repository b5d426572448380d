"""``solo-attn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import plain_console
from .._utils.files import check_output
from .app import Overrides, command
from .compare import show_comparison


@command
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("demo"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds for each system.")] = 1,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at a time; by default 3 on a CPU of several cores, else 1."),
    ] = None,
) -> None:
    """Generate synthetic street scenes, train small versions of the paper's three systems, and compare them.

    Example: [cyan]solo-attn demo[/cyan]   (a few minutes on two CPU cores, nothing is downloaded)

    A second call skips what is done.
    """
    from ..training import demo as run

    check_output(out, "demo", "--out", folder=True)
    console = plain_console()
    show_comparison(console, run(out, seeds=seeds, overrides=overrides or [], jobs=jobs, console=console))
    if seeds == 1:
        console.print("one seed and minutes of training: a demonstration, not evidence")
