"""``solo-attn convert``: other people's checkpoints and data sets into this library's formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from .app import app, command_of

P = ParamSpec("P")
R = TypeVar("R")

group = typer.Typer(no_args_is_help=True)
app.add_typer(group, name="convert", help="Take over checkpoints and data sets of other formats.")


def conversion(function: Callable[P, R]) -> Callable[P, R]:
    """Register ``solo-attn convert NAME`` for a function NAME or NAME_command; errors as in `command`."""
    return command_of(group, function)
