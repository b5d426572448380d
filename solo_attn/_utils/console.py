"""What is shown on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .text import printable


def plain_console(*, stderr: bool = False, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """Prints paths and names as they are: brackets would be markup to rich, and ``:cat:`` a picture.

    Control characters are escaped: otherwise a name in a file could send anything to the terminal.
    """
    return _Plain(stderr=stderr, soft_wrap=soft_wrap, quiet=quiet, markup=False, emoji=False, highlight=False)


class _Plain(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g} {self.unit} a second")


@contextmanager
def progress(title: str, total: int, unit: str | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, so that the output can be redirected; yields the function that advances it.

    With ``unit`` it also shows how many are done per second. Where standard error is no terminal, one line
    says what begins.
    """
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("") if unit is None else _Speed(unit),
    )
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(f"{title}: {total} {unit or 'to do'}", highlight=False)
        yield lambda count: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
