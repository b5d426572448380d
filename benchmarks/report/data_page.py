"""The generated part of docs/data.md: the counts of `solo-attn inspect`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import stored
from .stored import measured_on


def share(number: int, objects: int) -> str:
    """12 of 300 as "12 (4.0 %)"."""
    return f"{number:,} ({100 * number / objects:.1f} %)"


def setting(found: dict[str, Any]) -> str:
    """Grids, ranges and input of a setting."""
    ranges = " ".join(f"{low:g}-{high:g}" for low, high in found["scale_ranges"])
    return f"{' '.join(map(str, found['num_grids']))} | {ranges} | {found['min_size']}, {found['max_size']}"


def inspected() -> str:
    """The given and the proposed setting for each dataset."""
    found = stored.kept("inspect")
    lines = [
        "| data | | S of each level | ranges, pixels | input | in no range | no cell | centre taken | "
        "< 8 x 8 | cells | pixels |",
        f"| --- | --- | --- | --- | --- |{' ---: |' * 6}",
    ]
    for name, report in found.items():
        for when, key, counted in (
            ("as set", "setting", "count"),
            ("proposed", "proposal", "proposal_count"),
        ):
            count = report[counted]
            numbers = (count[k] for k in ("no_level", "no_cell", "centre_taken", "too_small"))
            shown = " | ".join(share(number, count["objects"]) for number in numbers)
            lines.append(
                f"| {name if when == 'as set' else ''} | {when} | {setting(report[key])} | {shown} | "
                f"{count['cells']:,} | {count['pixels']:,.0f} |"
            )
    told = "; ".join(f"{name}: {r['images']:,} images, {r['objects']:,} objects" for name, r in found.items())
    first = next(iter(found.values()))
    return "\n".join(lines) + f"\n\n{told}. {measured_on(first['environment'])}"


BLOCKS: dict[str, Callable[[], str]] = {"inspect": inspected}
