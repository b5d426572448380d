import io

import pytest
from rich.console import Console

from solo_attn._utils import console


@pytest.fixture
def shown(monkeypatch):
    """What is written to standard error, which is a terminal or not."""

    def begin(terminal, kind="xterm"):
        monkeypatch.setenv("TERM", kind)
        written = io.StringIO()

        def made(stderr):
            assert stderr
            return Console(file=written, force_terminal=terminal, width=80)

        monkeypatch.setattr(console, "Console", made)
        return written

    return begin


@pytest.mark.parametrize(
    ("unit", "line"), [(None, "measuring: 3 to do\n"), ("images", "measuring: 3 images\n")]
)
def test_progress_without_a_terminal_is_one_line(shown, unit, line):
    written = shown(False)
    with console.progress("measuring", 3, unit) as advance:
        assert written.getvalue() == line, "before anything is done"
        advance(2)
        advance(1)
    assert written.getvalue() == line


def test_progress_on_a_terminal_is_a_bar(shown):
    written = shown(True)
    with console.progress("measuring", 3, "images") as advance:
        advance(3)
    assert "3/3" in written.getvalue()


def test_progress_on_a_terminal_that_cannot_go_back_is_one_line(shown):
    written = shown(True, "dumb")
    with console.progress("measuring", 3, "images") as advance:
        advance(3)
    assert written.getvalue() == "measuring: 3 images\n"
