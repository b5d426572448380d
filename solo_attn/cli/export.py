"""``solo-attn export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import plain_console
from .._utils.files import check_output
from .app import command


@command
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt or .safetensors file.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .onnx or .pt2.", metavar="OUT")],
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="Candidates on each level of an image.")
    ] = 100,
    compiled: Annotated[
        bool,
        typer.Option("--compiled", help="Compile a .pt2 for this machine's CPU by AOTInductor (minutes)."),
    ] = False,
) -> None:
    """Write a model as one file for other runtimes: ONNX, or a program of torch.export.

    Example: [cyan]solo-attn export runs/nuclei/best.ckpt nuclei.onnx[/cyan]

    The file takes batches of any size and images with sides in multiples of 32, and ends with Matrix NMS: it
    gives scores, labels, masks at a quarter of the input's size, and how many there are. Its metadata holds
    classes, normalisation, sizes and thresholds. [cyan]solo-attn predict nuclei.onnx photos/ --out
    found[/cyan] runs it.
    """
    from ..export import export_model

    check_output(out, "export", "OUT")
    export_model(checkpoint, out, candidates=candidates, compiled=compiled)
    plain_console(soft_wrap=True).print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
