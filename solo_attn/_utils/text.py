"""Text that comes from files: what a name may be, and how anything is shown in a line."""

from __future__ import annotations

import reprlib
import unicodedata
from typing import Any

_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories
_JOINERS = "\u200c\u200d"  # of one of them, and part of words in Persian and Hindi


class _Short(reprlib.Repr):
    """Cuts while it goes, where `repr` makes the whole text first: aliases in YAML make that endless."""

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


def printable(text: str) -> str:
    """``text`` with its control characters, but for line breaks and tabs, spelt out: terminals obey them."""
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if _is_control(c) and c not in "\n\t" else c for c in text)


def _is_control(character: str) -> bool:
    """What terminals obey, what turns the direction of text, half characters, and what breaks lines."""
    return unicodedata.category(character) in _CONTROL and character not in _JOINERS


def name_fault(name: Any) -> str | None:
    """What keeps a value from being a class's name, or None: names reach terminals, pictures and pages."""
    from .limits import limits  # whoever only shows things does not need pydantic

    if not isinstance(name, str) or not name.strip():
        return f"expected a name to be text, got {shown(name)}"
    if len(name) > limits.name_characters:
        return f"expected a name of at most {limits.name_characters} characters, got {len(name)}"
    if any(map(_is_control, name)):
        return f"expected a name without control characters, got {shown(name)}"
    return None
