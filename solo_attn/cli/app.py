"""The root command, and errors as one red line instead of a traceback."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")

# Modules of the extra "train".
_EXTRA = {"lightning", "tensorboard", "pycocotools", "yaml", "safetensors", "matplotlib", "PIL"}

# Set by every invocation, before its command.
_show_tracebacks = False

app = typer.Typer(
    name="solo-attn",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class UsageError(ValueError):
    """Arguments of a command that cannot be used."""


def _version(value: bool) -> None:
    if value:
        try:
            typer.echo(f"solo-attn {version('solo-attn')}")
        except PackageNotFoundError:
            from .. import __version__

            typer.echo(f"solo-attn {__version__} (not installed)")
        raise typer.Exit()


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error.", envvar="SOLO_ATTN_DEBUG")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Find each object in an image, with its outline: SOLO with grid attention.

    New here? [bold]solo-attn demo[/bold] trains and compares three small models in a few minutes and needs no
    data; [bold]solo-attn doctor[/bold] says what this machine can run.
    """
    global _show_tracebacks
    _show_tracebacks = debug


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose expected errors are shown as one red line, with exit code 2."""
    return command_of(app, function)


def command_of(group: typer.Typer, function: Callable[P, R]) -> Callable[P, R]:
    """`command` for a group of commands, such as those of ``solo-attn convert``."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            message = _expected(error)
            if message is None or _show_tracebacks:
                raise
            line = Text.assemble(("error:", "bold red"), " ", _without_worker(message))
            plain_console(stderr=True, soft_wrap=True).print(line)
            raise typer.Exit(2) from error

    name = function.__name__.removesuffix("_command").replace("_", "-")
    group.command(name)(wrapped)
    return wrapped


def plain_console(*, stderr: bool = False, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """Prints paths and names as they are: brackets would be markup to rich, and ``:cat:`` a picture."""
    return Console(
        stderr=stderr, soft_wrap=soft_wrap, quiet=quiet, markup=False, emoji=False, highlight=False
    )


def _expected(error: Exception) -> str | None:
    """What to tell the user; None for an error that is a fault of this program."""
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        return f'this command needs {missing}: pip install "solo-attn[train]"' if missing in _EXTRA else None
    if isinstance(error, ImportError) and "solo-attn[train]" in str(error):
        return str(error)
    if isinstance(error, (UsageError, OSError)):
        return str(error)
    if isinstance(error, (ValueError, RuntimeError)):
        from ..data import DatasetError
        from ..training import CheckpointError, ConfigError, TrainingError

        if isinstance(error, (DatasetError, CheckpointError, ConfigError, TrainingError)):
            return str(error)
    return None


def _without_worker(message: str) -> str:
    """The message itself: PyTorch puts the traceback of the process that loaded the data around it."""
    caught = re.match(r"Caught (\w+) .*\nOriginal Traceback ", message)
    return message if caught is None else message.rpartition(f"{caught[1]}: ")[2].strip()


def main() -> None:
    """Entry point of the console script."""
    app()
