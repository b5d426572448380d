"""Functions that all generated pages use: reading benchmarks/results, tables, blocks of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import ROOT

IMAGES, RESULTS = ROOT / "docs" / "images", ROOT / "benchmarks" / "results"
CPU = "cpu"  # the folder of what was measured on a CPU; one for each GPU lies beside it


def kept(name: str, machine: str = CPU) -> Any:
    """The content of ``results/MACHINE/NAME.json``, or None if it was not measured."""
    path = RESULTS / machine / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def machines() -> list[str]:
    """Folders of results, the CPU's first."""
    found = sorted(path.name for path in RESULTS.iterdir() if path.is_dir())
    return sorted(found, key=lambda name: name != CPU)


def folder_of(device: str) -> Path:
    """The folder of measurements on ``device``: one for CPUs, and one named after each GPU."""
    if device == "cpu":
        return RESULTS / CPU
    return RESULTS / re.sub(r"\W+", "_", torch.cuda.get_device_name(device)).strip("_").lower()


def measured_on(environment: Mapping[str, Any], seconds: float | None = None) -> str:
    """Machine, versions and commit of a number, in words."""
    took = "" if seconds is None else f"{seconds / 60:,.0f} minutes on "
    more = "".join(
        f"{word} {environment[key]}, "
        for key, word in (("driver", "driver"), ("cuda", "CUDA"), ("triton", "triton"))
        if environment.get("driver") and environment.get(key)
    )
    count = environment["threads"]
    threads = f"{count} thread{'' if count == 1 else 's'}"
    return (
        f"({took}{environment['device']}, {threads}, torch {environment['torch']}, "
        f"{more}commit {environment['commit']}, {environment['date'][:10]})"
    )


def per_cent(value: float) -> str:
    """0.1234 as "12.3"; "–" where COCO leaves it undefined."""
    return "–" if value < 0 else f"{100 * value:.1f}"


def table(head: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A Markdown table; ``words`` columns are aligned left, and the numbers right."""
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str, blocks: Mapping[str, Callable[[], str]], page: str) -> str:
    """``text`` with a new block between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->``.

    Raises:
        ValueError: ``page`` has a block not once, or has one of no name in ``blocks``.
    """
    there = re.findall(r"<!-- begin:(\w+) -->", text)
    if sorted(there) != sorted(blocks):
        raise ValueError(f"stored: expected blocks {', '.join(blocks)} in {page}, got {', '.join(there)}")
    for name, make in blocks.items():
        begin, end = f"<!-- begin:{name} -->\n", f"<!-- end:{name} -->"
        block = f"{begin}{make()}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"stored: expected one end of block {name} in {page}, got {count}")
    return text
