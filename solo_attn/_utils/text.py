"""Text from files: which names are allowed, and how any value is shown in one line."""

from __future__ import annotations

import json
import reprlib
import unicodedata
from collections.abc import Sequence
from typing import Any

_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories
_JOINERS = "\u200c\u200d"  # of one of them, and part of words in Persian and Hindi


class _Short(reprlib.Repr):
    """Cuts while it builds the text: `repr` builds all of it first, which aliases in YAML make endless."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 6

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 200:  # Python refuses to write very long ones
            return f"an integer of {x.bit_length()} bits"
        return repr(x)


def shown(value: Any, most: int = 80) -> str:
    """A value as one short line, whatever it is; cut after ``most`` characters."""
    text = printable(_Short().repr(value))
    return text if len(text) <= most else f"{text[:most]}..."


def change(name: str, before: Any, now: Any) -> str:
    """ "train.epochs: 12 -> 24": a setting of plain values that changed, as JSON has them."""
    return f"{name}: {_plain(before)} -> {_plain(now)}"


def _plain(value: Any, most: int = 200) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= most else f"{text[:most]}..."


def below(lines: Sequence[str], most: int = 8) -> str:
    """Lines of a message below its first one, and how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in (*lines[:most], *more))


def quantity(number: int, noun: str, plural: str = "") -> str:
    """ "1 image", "2 images"; ``plural`` is for nouns that do not add an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """``text`` with control characters escaped, except line breaks and tabs: terminals obey them."""
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if _is_control(c) and c not in "\n\t" else c for c in text)


def _is_control(character: str) -> bool:
    """Control characters, marks that change the direction of text, lone surrogates, and line breaks."""
    return unicodedata.category(character) in _CONTROL and character not in _JOINERS


def name_fault(name: Any) -> str | None:
    """Why a value cannot be a class's name, or None: names reach terminals, pictures and pages."""
    from .limits import limits  # code that only shows values does not need pydantic

    if not isinstance(name, str) or not name.strip():
        return f"expected a name to be text, got {shown(name)}"
    if len(name) > limits.name_characters:
        return f"expected a name of at most {limits.name_characters} characters, got {len(name)}"
    if any(map(_is_control, name)):
        return f"expected a name without control characters, got {shown(name)}"
    return None
