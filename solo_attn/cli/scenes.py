"""``solo-attn scenes``: synthetic training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import plain_console
from .._utils.errors import UsageError
from .._utils.files import check_output
from .app import command


@command
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for images and annotations.")],
    train: Annotated[int, typer.Option("--train", help="Scenes to train on.")] = 450,
    val: Annotated[int, typer.Option("--val", help="Scenes to validate on.")] = 50,
    test: Annotated[int, typer.Option("--test", help="Scenes for the final numbers.")] = 0,
    size: Annotated[tuple[int, int], typer.Option("--size", help="Height and width in pixels.")] = (256, 512),
    seed: Annotated[int, typer.Option("--seed", help="Of all scenes.")] = 0,
) -> None:
    """Generate synthetic street scenes in COCO's format: rows of similar objects of the paper's five classes.

    Example: [cyan]solo-attn scenes data/scenes --test 100[/cyan]

    The same arguments draw the same scenes on every machine; a folder that already holds them is not changed.
    """
    from ..data import write_street_scenes

    check_output(out, "scenes", "OUT", folder=True)
    try:
        written = write_street_scenes(out, num_train=train, num_val=val, num_test=test, size=size, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for path in (written.train_annotations, written.val_annotations, written.test_annotations):
        if path is not None:
            plain_console(soft_wrap=True).print(f"  {path}")
