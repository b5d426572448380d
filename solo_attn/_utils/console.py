"""What the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..cli.app import UsageError


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, so that what is printed can be redirected; yields how to advance it."""
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn(""),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def taking(file: Path) -> Iterator[None]:
    """What stops a model on an image, as one line that names the file.

    Raises:
        UsageError: a strip too thin to resize, an image too large for the memory.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file}: the model cannot take it: {reason}") from error


def pick_device(name: str) -> str:
    """The device of that name; "auto" is the first accelerator, else the CPU.

    Raises:
        UsageError: there is none of that name.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"expected --device to be cpu or an accelerator of this machine, got {name!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return name
