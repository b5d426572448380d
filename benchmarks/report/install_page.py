"""The generated part of docs/install.md."""

from __future__ import annotations

from collections.abc import Callable

from . import stored
from .stored import measured_on


def abi() -> str:
    """With which version of torch one wheel was tested."""
    found = stored.kept("abi")
    return (
        f"Seen: {found['wheel']}, built with torch {found['built_with']}, under torch {found['run_with']}: "
        f"{found['passed']:,} tests of the ops passed, {found.get('skipped', 0)} skipped. "
        f"{measured_on(found['environment'])}"
    )


BLOCKS: dict[str, Callable[[], str]] = {"abi": abi}
