"""Large results of the C++ kernels ask the system for huge pages."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from solo_attn import attention_residual, paste_masks, upsample_add

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> str:
    """What the system was told of the memory there: the VmFlags of its mapping."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line
    raise AssertionError("no such memory")


PAGE = 2 << 20


def first_page(x: torch.Tensor) -> int:
    """Of the whole huge pages; further ones are small again where the system takes long to make room."""
    return -(-x.data_ptr() // PAGE) * PAGE


@pytest.mark.skipif(not SETTING.exists(), reason="a system without huge pages")
def test_large_results_ask_for_huge_pages() -> None:
    features, coarse = torch.zeros(1, 2, 8, 8), torch.zeros(40, 84, 168)
    size = (168, 336)
    for run in (
        lambda: upsample_add(coarse, None, size, backend="cpu"),
        lambda: attention_residual(torch.zeros(1, 64, 168, 336), features, backend="cpu"),
        lambda: paste_masks(coarse, None, size, size, size, (300, 600), backend="cpu"),
    ):
        time.sleep(1.1)  # an earlier result may have had to wait for room, after which none is asked for
        assert " hg" in flags_of(first_page(run()))
