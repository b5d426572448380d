"""The root command, and errors as one red line instead of a traceback."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.text import Text

from .. import __version__
from .._utils.console import plain_console
from .._utils.errors import SoloAttnError, extra_needed
from .._utils.signals import SignalledError, as_interrupt, name_of, signal_of
from .._utils.text import printable

P = ParamSpec("P")
R = TypeVar("R")

# Arguments of several commands.
ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see configs/.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change, such as train.epochs=3 model.attention=null.", metavar="[KEY=VALUE]..."
    ),
]

_SIGPIPE = 13  # Windows has no such signal

# Set by every invocation, before its command.
_show_tracebacks = False

app: typer.Typer = typer.Typer(
    name="solo-attn",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"solo-attn {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.", envvar="SOLO_ATTN_DEBUG")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Find each object in an image, with its outline: SOLO with grid attention.

    New here? [bold]solo-attn demo[/bold] trains and compares three small models in a few minutes and needs no
    data; [bold]solo-attn doctor[/bold] prints what this machine can run.
    """
    global _show_tracebacks
    _write_any_name()
    _show_tracebacks = debug


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose expected errors are shown as one red line, with exit status 2."""
    return command_of(app, function)


def command_of(group: typer.Typer, function: Callable[P, R]) -> Callable[P, R]:
    """`command` for a group of commands, such as those of ``solo-attn convert``."""
    name = function.__name__.removesuffix("_command").replace("_", "-")

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with as_interrupt(), extra_needed(f"solo-attn {name}"):
                result = function(*args, **kwargs)
                sys.stdout.flush()  # a failed write is found here, and not after the exit status
                return result
        except BrokenPipeError as error:
            # The reader of the output has closed it, as `head` does; Python would report this again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + _SIGPIPE) from error
        except KeyboardInterrupt as error:
            signum = signal_of(error)
            _say_error(f"{name}: ended by {name_of(signum)}; files that are written are whole")
            raise typer.Exit(128 + signum) from error
        except SignalledError as error:
            _say_error(str(error))
            raise typer.Exit(128 + error.signum) from error
        except (SoloAttnError, OSError, MemoryError) as error:
            if _show_tracebacks:
                raise
            _say_error(_without_worker(str(error)) or f"{name}: out of memory")
            raise typer.Exit(2) from error

    group.command(name)(wrapped)
    return wrapped


def _say_error(message: str) -> None:
    line = Text.assemble(("error:", "bold red"), " ", printable(message))
    with contextlib.suppress(OSError):  # standard error may be closed too
        plain_console(stderr=True, soft_wrap=True).print(line)


def _write_any_name() -> None:
    """Print names in any alphabet on any terminal: characters that its encoding lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _without_worker(message: str) -> str:
    """The message itself: PyTorch wraps it in the traceback of the process that loaded the data."""
    caught = re.match(r"Caught (\w+) .*\nOriginal Traceback ", message)
    return message if caught is None else message.rpartition(f"{caught[1]}: ")[2].strip()
