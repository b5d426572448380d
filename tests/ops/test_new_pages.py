"""Large results of the C++ kernels ask the system for huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from solo_attn import attention_residual, paste_masks, upsample_add
from solo_attn.ops.bit_masks import unpack_masks

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


def asked(x: torch.Tensor) -> bool:
    """Whether huge pages were asked for: "hg", or "nh" where they took long, and the rest is small again."""
    address = -(-x.data_ptr() // PAGE) * PAGE  # of the first whole huge page
    return bool({"hg", "nh"} & set(flags_of(address).split()))


@pytest.mark.skipif(not SETTING.exists(), reason="a system without huge pages")
def test_large_results_ask_for_huge_pages() -> None:
    features, coarse = torch.zeros(1, 2, 8, 8), torch.zeros(40, 84, 168)
    size = (168, 336)
    for run in (
        lambda: upsample_add(coarse, None, size, backend="cpu"),
        lambda: attention_residual(torch.zeros(1, 64, 168, 336), features, backend="cpu"),
        lambda: paste_masks(coarse, None, size, size, size, (300, 600), backend="cpu"),
        lambda: unpack_masks(torch.zeros(40, 16384, dtype=torch.int64), 1 << 20),
    ):
        assert asked(run())
    assert not asked(torch.empty(16 * PAGE, dtype=torch.uint8))
