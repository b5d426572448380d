"""``solo-attn train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import plain_console
from .._utils.environment import first_process
from .._utils.files import check_output
from .app import ConfigFile, Overrides, command


@command
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/train"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the folder's last.ckpt if there is one.")
    ] = False,
) -> None:
    """Train one model.

    Example: [cyan]solo-attn train configs/nuclei_small.yaml train.epochs=5 --out runs/nuclei[/cyan]

    The folder receives config.yaml, last.ckpt, best.ckpt (the best whole epoch), TensorBoard logs, CSV and,
    at the end, report.html with metrics, curves and pictures. The same command with --resume continues a
    killed run, with the same result as without the kill.
    """
    from ..training import load_config
    from ..training import train as run

    check_output(out, "train", "--out", folder=True)
    # With several devices or machines this command runs once for each: the first one speaks.
    console = plain_console(quiet=not first_process())
    result = run(load_config(config, overrides or []), out, resume=resume, console=console)
    console.print(str(result.metrics))
    if result.test_metrics is not None:
        console.print(f"on the test images:\n{result.test_metrics}")
    for path in (result.last, result.best, result.report):
        if path is not None:
            console.print(f"  {path}", soft_wrap=True)
