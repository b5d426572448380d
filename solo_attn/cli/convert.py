"""``solo-attn convert``: other people's checkpoints and data sets into this library's formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from .app import UsageError, app, command_of, plain_console

P = ParamSpec("P")
R = TypeVar("R")

group = typer.Typer(no_args_is_help=True)
app.add_typer(group, name="convert", help="Take over checkpoints and data sets of other formats.")


def conversion(function: Callable[P, R]) -> Callable[P, R]:
    """Register ``solo-attn convert NAME`` for a function NAME or NAME_command; errors as in `command`."""
    return command_of(group, function)


@conversion
def mmdet(
    checkpoint: Annotated[Path, typer.Argument(help="A SOLO checkpoint of mmdetection 3.x (.pth).")],
    out: Annotated[Path, typer.Argument(help="Where to write: a .ckpt or .safetensors file.")],
) -> None:
    """Make a checkpoint of mmdetection's SOLO into one of this library.

    Example: [cyan]solo-attn convert mmdet epoch_36.pth solo.safetensors[/cyan]

    ResNet-18, 34, 50 and 101 with FPN and any number of classes. Nothing in the file is run, and mmdetection
    need not be installed. docs/mmdet.md says what is the same afterwards and what is not.
    """
    from ..interop.mmdet import convert_checkpoint

    if out.suffix not in (".ckpt", ".safetensors"):
        raise UsageError(f"convert: expected OUT to end with .ckpt or .safetensors, got {out}")
    done = convert_checkpoint(checkpoint, out)
    console = plain_console(soft_wrap=True)
    for note in done.notes:
        console.print(f"note: {note}")
    model = done.info.model
    console.print(
        f"{out}: {model['backbone']}, {model['num_classes']} classes "
        f"({', '.join(done.info.class_names[:5])}{', ...' if model['num_classes'] > 5 else ''})"
    )
