"""What `benchmarks/gpu.py` stored of a GPU, as tables."""

from __future__ import annotations

from typing import Any

import stored
from speed import REFERENCE, mebibytes, median, milliseconds
from stored import measured_on, table

from solo_attn.bench import COMPILED, PLAIN


def ours_of(case: dict[str, Any]) -> str:
    """The backend that an op takes where none is named: the first that was timed."""
    return next(name for name in case["seconds"] if name not in (PLAIN, COMPILED, REFERENCE))


def named(case: dict[str, Any]) -> str:
    """A case in words."""
    direction = ", backward" if case["direction"] == "backward" else ""
    return f"{case['op']}: {case['what']}{direction}; batch {case['batch']}, {case['dtype']}"


def row(case: dict[str, Any]) -> list[str]:
    """Times and memory of one case."""
    ours = ours_of(case)
    floor = case.get("floor")
    above = "–" if floor is None else f"{median(case, ours) / floor:.1f}"
    hidden = [milliseconds(median(case, name)) for name in (ours, PLAIN, COMPILED)]
    bound = ["*" if name in case.get("host_bound", ()) else "" for name in (ours, PLAIN, COMPILED)]
    times = [f"{time}{mark}" for time, mark in zip(hidden, bound, strict=True)]
    return [named(case), ours, *times, above, mebibytes(case, ours), mebibytes(case, PLAIN)]


def gpu_section(machine: str, found: dict[str, Any]) -> str:
    """Every case, what the GPU could do at best, and what was left out."""
    rates = "; ".join(
        f"{name} {rate / 1e12:.2f} {'TB/s' if name == 'copy' else 'TFLOP/s'}"
        for name, rate in found["rates"].items()
    )
    head = ["case", "ours", "ours, ms", PLAIN, COMPILED, "ours / floor", "MiB", f"{PLAIN}, MiB"]
    paths = [
        [f"from features to masks, {path['dtype']}"]
        + [milliseconds(median(path, name)) for name in ("lazy", "dense")]
        + [mebibytes(path, name) for name in ("lazy", "dense")]
        for path in found["lazy"]
    ]
    picture = stored.RESULTS / machine / "gpu.png"
    drawn = f"\n\n![Each op](../benchmarks/results/{machine}/gpu.png)" if picture.exists() else ""
    marked = any(case.get("host_bound") for case in found["cases"])
    star = " With a star: the time is the host's too." if marked else ""
    return (
        f"{table(head, [row(case) for case in found['cases']], words=2)}\n\n"
        "Inference's path, chosen cells only (ours) against every cell (dense):\n\n"
        f"{table(['path', 'ours, ms', 'dense, ms', 'ours, MiB', 'dense, MiB'], paths)}\n\n"
        f"Medians. The floor is what a case's bytes and flops take at the best rates that the same run "
        f"measured: {rates}.{star} Left out: {', '.join(found['left_out']) or 'nothing'}. "
        f"{measured_on(found['environment'])}{drawn}"
    )
