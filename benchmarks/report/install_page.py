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


def arm64() -> str:
    """Which tests of the kernels ran on 64-bit ARM, and how."""
    found = stored.kept("arm64")
    compiler, emulator = found["compiler"], found["emulator"].replace(" version ", " ")
    loops = ", ".join(f"{op} {count}" for op, count in found["vector_loops"].items())
    return (
        f"Seen: compiled by {compiler}, run by {emulator}: of the op tests that `-k "
        f'"{found["tests"]}"` chooses outside of the files of CUDA and Triton, {found["passed"]:,} passed, '
        f"{found['failed']} failed, {found['skipped']} skipped. Innermost loops that compute with NEON, in "
        f"all dtypes: {loops}. "
        f"{measured_on(found['environment'])}"
    )


BLOCKS: dict[str, Callable[[], str]] = {"abi": abi, "arm64": arm64}
