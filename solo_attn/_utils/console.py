"""What is shown on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def plain_console(*, stderr: bool = False, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """Prints paths and names as they are: brackets would be markup to rich, and ``:cat:`` a picture."""
    return Console(
        stderr=stderr, soft_wrap=soft_wrap, quiet=quiet, markup=False, emoji=False, highlight=False
    )


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
