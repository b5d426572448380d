"""The races, and the rows of their results in `end_to_end.json` and docs/speed.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

DTYPES, BATCHES, WHAT = ("float32", "bfloat16"), (1, 8), ("training", "inference")

Job = tuple[str, int, str, bool]  # what, batch, dtype, compiled


def jobs(batches: Sequence[int], dtypes: Sequence[str], compiled: bool) -> Iterator[Job]:
    """The races in the order of their importance; those that compile take minutes, and come last."""
    for late in (False, True) if compiled else (False,):
        for batch in batches:
            for dtype in dtypes:
                for what in WHAT:
                    yield what, batch, dtype, late


def job_name(job: Job) -> str:
    """In words."""
    what, batch, dtype, compiled = job
    return f"{what}, batch {batch}, {dtype}{', compiled' if compiled else ''}"


def same_race(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """The rows of one race, which may have been run again with more contenders."""
    return all(row[key] == other[key] for key in ("what", "batch", "dtype"))


def in_words(row: dict[str, Any]) -> str:
    """A row's numbers."""
    if "failed" in row:
        return why_failed(row)
    memory = "" if row["peak_bytes"] is None else f", {row['peak_bytes'] / 1e9:.2f} GB"
    return f"{row['images_per_second']:.3g} images/s{memory}"


def why_failed(row: dict[str, Any]) -> str:
    """Of what was too large for a CPU the limit tells more than the piece that it asked for last."""
    limit = row.get("limit_bytes")
    if limit and "can't allocate memory" in row["failed"]:
        return f"failed: needs more than the {limit / 2**20:,.0f} MiB that the process could have"
    return f"failed: {row['failed']}"
