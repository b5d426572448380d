"""The generated part of docs/reliability.md: how long it was attacked, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import stored
from .stored import measured_on, table

GIB, MIB = 2**30, 2**20


def kills(found: dict[str, Any]) -> str:
    """Of each command, by what it was killed, and how often in all."""
    signals = ("SIGKILL", "SIGTERM")
    rows = [
        [f"`{name}`", *(str(by.get(signal, 0)) for signal in signals)] for name, by in found["of"].items()
    ]
    return (
        f"{found['kills']} kills; {found['compared']} jobs that had been killed were run to their end and "
        f"compared with unbroken ones, and none differed {measured_on(found['environment'])}:\n\n"
        f"{table(['command', *signals], rows)}"
    )


def files(found: dict[str, Any]) -> str:
    """How far the random COCO files came, and the memory."""
    ends = ", ".join(f"{count:,} {end}" for end, count in sorted(found["ends"].items()))
    return (
        f"{found['files']:,} random COCO files: {ends}. No traceback, none took more than "
        f"{found['hang_limit']} seconds of CPU time, and the process, which held "
        f"{found['largest'] / MIB:,.0f} MiB at most, grew by {found['growth'] / MIB:,.0f} MiB after "
        "the first hundred "
        f"{measured_on(found['environment'])}."
    )


def prediction(found: dict[str, Any]) -> str:
    """The memory of a large picture."""
    height, width = found["size"]
    return (
        f"{found['instances']} instances of {height} x {width} pixels, predicted and written as COCO results "
        f"and as an id map: {found['largest'] / GIB:.2f} GiB of memory at most, the program included; as "
        f"pixels the masks alone would take {found['instances'] * height * width / GIB:.1f} GiB "
        f"{measured_on(found['environment'])}."
    )


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "kills": kills,
    "coco_files": files,
    "large_prediction": prediction,
}


def attacks() -> str:
    """What was stored, a paragraph for each."""
    found = {name: stored.kept(name) for name in PARTS}
    return "\n\n".join(part(found[name]) for name, part in PARTS.items() if found[name] is not None)


BLOCKS: dict[str, Callable[[], str]] = {"attacks": attacks}
