"""A font for names in any alphabet: matplotlib's own, else one of the system."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def font_for(text: str) -> str | None:
    """The file of a font that has every character of ``text``; None where this system has none.

    matplotlib has its own, so names in Latin, Greek and Cyrillic look the same on every machine.
    """
    wanted = frozenset(ord(c) for c in text if not c.isspace())
    if wanted <= _characters(OWN):
        return OWN
    return _on_the_system(wanted)


def legible(name: str, label: int) -> str:
    """``name``, or its number if no font has its letters, with one warning."""
    if font_for(name) is not None:
        return name
    _say(name, label)
    return f"class {label}"


@functools.cache
def _say(name: str, label: int) -> None:
    warnings.warn(
        f"draw_instances: no font on this system has the letters of {name!r}, written as class {label}; "
        "install one that has them (Noto, for example)",
        stacklevel=4,
    )


@functools.cache
def _on_the_system(wanted: frozenset[int]) -> str | None:
    files = sorted({entry.fname for entry in font_manager.fontManager.ttflist})
    return next((file for file in files if wanted <= _characters(file)), None)


@functools.cache
def _characters(file: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a damaged font, or a kind of font without this table
        return frozenset()
