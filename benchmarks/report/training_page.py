"""The generated part of docs/training.md: every setting, from its declaration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solo_attn._utils.settings import Settings, describe
from solo_attn.training.config import Config

from .stored import table


def default_of(value: Any) -> str:
    """A value in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(default_of, value))}]"
    return str(value) or '""'


def settings_of(section: type[Settings]) -> str:
    """One row per setting, in the order of their declaration."""
    rows = []
    for name, field in section.model_fields.items():
        told = " ".join((field.description or "").split())
        cells = [f"`{name}`", describe(field), f"`{default_of(field.default)}`", told]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    return table(["setting", "value", "default", "meaning"], rows, words=4)


def section(name: str) -> Callable[[], str]:
    """A function that makes the table of ``data``, ``model`` or ``train``."""
    kind = Config.model_fields[name].annotation
    assert isinstance(kind, type)
    return lambda: settings_of(kind)


BLOCKS: dict[str, Callable[[], str]] = {f"settings_{name}": section(name) for name in Config.model_fields}
