"""Where the time of a prediction and of a training step goes, a section of docs/speed.md."""

from __future__ import annotations

from solo_attn.bench.quiet import BUSY, STEADY

from ..end_to_end.profile import NETWORK
from . import stored
from .speed import milliseconds
from .stored import measured_on, table


def profile() -> str:
    """Each part of a step in per cent of it, and the step beside the network alone."""
    found = stored.kept("profile")
    if not found:
        return "Not measured yet (`python -m benchmarks.end_to_end.profile`)."
    rows, notes = [], []
    for row in found["rows"]:
        total = sum(row["parts"].values())
        name = f"{row['what']}, {row['dtype']}"
        seconds = (row["seconds"][which]["median"] for which in ("step", "alone"))
        shares = [f"{100 * value / total:.1f}" for value in row["parts"].values()]
        outside = sum(value for part, value in row["parts"].items() if part not in NETWORK)
        rows.append(
            [
                name,
                *shares,
                f"{100 * outside / total:.1f}",
                *map(milliseconds, seconds),
                f"{row['ratio']:.2f}",
            ]
        )
        if row["busy"] is not None and row["busy"] >= BUSY:
            notes.append(f"{name}: {row['busy']:.1f} cores were busy with other work")
        if row["spread"] is not None and row["spread"] > STEADY:
            notes.append(f"{name}: medians differed by {100 * row['spread']:.0f} %")
    parts = [f"{part}, %" for part in found["rows"][0]["parts"]]
    height, width = found["size"]
    how_quiet = "; ".join(notes) or "The machine was quiet"
    return (
        f"{table(['one image', *parts, 'outside of the network, %', 'ms', 'alone, ms', 'times'], rows)}\n\n"
        f"{width} x {height}, {found['candidates']} candidates, in training {found['objects']} objects. "
        f"Outside of the network: all but {', '.join(NETWORK)}. Alone: backbone, pyramid, category branch, "
        "the mask tower of the levels with chosen cells and these cells' output convolutions, in training "
        f"with their gradients. {how_quiet}. {measured_on(found['environment'])}"
    )
