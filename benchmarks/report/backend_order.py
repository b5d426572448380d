"""Proposed rows for solo_attn/backends/order.py, from stored measurements on a GPU: part of `make results`.

They are printed and not written: which GPU counts, and which difference matters, is a decision for people.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from solo_attn.backends import NAMES
from solo_attn.backends.order import Row, row_of

from . import stored

Times = dict[str, float]  # seconds by backend


def totals(cases: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, Times]]:
    """For each op, dtype and size: the times of the backends, forward and backward together.

    A backend counts where every direction that was measured has a time of it.
    """
    parts: dict[tuple[str, str, int, str], list[Times]] = defaultdict(list)
    for case in cases:
        times = {name: found["median"] for name, found in case["seconds"].items() if name in NAMES}
        parts[case["op"], case["dtype"], case["size"], case["what"]].append(times)
    found: dict[tuple[str, str], dict[int, Times]] = defaultdict(dict)
    for (op, dtype, size, _), directions in parts.items():
        names = set.intersection(*map(set, directions)) - {"reference"}
        if len(names) > 1:
            found[op, dtype][size] = {name: sum(times[name] for times in directions) for name in names}
    return found


def fastest_first(times: Times) -> tuple[str, ...]:
    """Names of backends."""
    return tuple(sorted(times, key=lambda name: times[name]))


def proposal(cases: list[dict[str, Any]], gpu: str) -> list[Row]:
    """Rows for each op and dtype: from the size on at which an order was measured up to the next.

    Below the least size that was measured, its order counts too.
    """
    rows = []
    for (op, dtype), sizes in totals(cases).items():
        mine: list[Row] = []
        for size in sorted(sizes):
            order = fastest_first(sizes[size])
            if mine and mine[-1].backends == order:
                continue
            took = " against ".join(f"{1e6 * sizes[size][name]:.0f}" for name in order)
            reason = f"{took} us at {size:,} elements on {gpu}"
            least = size if mine else 0
            mine.append(Row((op,), (getattr(torch, dtype),), least, order, "measured", reason))
        rows += reversed(mine)
    return rows


def source(row: Row) -> str:
    """The row as Python code for order.py."""
    dtypes = ", ".join(map(str, row.dtypes))
    return f'Row({row.ops!r}, ({dtypes},), {row.least}, {row.backends!r}, {row.source!r}, "{row.reason}"),'


def changes(rows: list[Row]) -> list[str]:
    """The present order of `select`, in words."""
    found = []
    for row in rows:
        now = row_of(row.ops[0], "cuda", row.dtypes[0], row.least)
        if now.backends[0] != row.backends[0]:
            found.append(f"{row.ops[0]}, {row.dtypes[0]}: {row.backends[0]}, not {now.backends[0]}")
    return found


def main() -> None:
    """The command."""
    for machine in stored.machines():
        found = stored.kept("gpu", machine)
        if found is None:
            continue
        rows = proposal(found["cases"], found["environment"]["device"])
        print(f"solo_attn/backends/order.py, by {machine}:", *map(source, rows), sep="\n    ")
        print("otherwise than now:", *(changes(rows) or ["nothing"]), sep="\n    ")


if __name__ == "__main__":
    main()
