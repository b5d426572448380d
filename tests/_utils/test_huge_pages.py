"""Rows of large tensors, copied into huge pages."""

from __future__ import annotations

import mmap

import pytest
import torch

from solo_attn._utils import memory

LARGE = {
    "words": torch.rand(40, 256, 512) > 0.5,
    "bytes": torch.randint(0, 255, (40, 333, 511), dtype=torch.uint8),
    "floats": torch.randn(9, 400, 401),
    "half": torch.randn(9, 701, 501).to(torch.float16),
    "off a word": (torch.rand(40 * 256 * 512 + 1) > 0.5)[1:].view(40, 256, 512),
    "not contiguous": torch.rand(40, 512, 256).transpose(1, 2),
}


@pytest.mark.parametrize("name", LARGE)
def test_rows_are_those_of_an_index(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = LARGE[name]
    index = torch.randint(0, len(x), (45,))
    asked = []
    ask = memory._ask_for_huge_pages
    monkeypatch.setattr(memory, "_ask_for_huge_pages", lambda out: asked.append(out) or ask(out))
    found = memory.take_rows(x, index)
    assert torch.equal(found, x[index])
    assert len(asked) == (name != "not contiguous")


def test_what_is_small_or_has_a_gradient_is_indexed() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    memory.take_rows(x, torch.tensor([2, 0])).sum().backward()
    assert x.grad is not None
    large = torch.randn(8, 1 << 18, requires_grad=True)
    memory.take_rows(large, torch.tensor([1])).sum().backward()
    assert memory.take_rows(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0, 5)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without huge pages")
def test_none_are_asked_for_while_the_system_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that takes long: the rest of this result is of small ones, and so is the next one."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *what: asked.append(what) or 0)
    monkeypatch.setattr(memory, "_resume", 0.0)
    monkeypatch.setattr(memory, "_SLOW", 60.0)
    x = torch.empty(64 << 20, dtype=torch.uint8)
    memory._ask_for_huge_pages(x)
    assert [advice for *_, advice in asked] == [mmap.MADV_HUGEPAGE]
    monkeypatch.setattr(memory, "_SLOW", -1.0)
    memory._ask_for_huge_pages(x)
    assert [advice for *_, advice in asked[1:]] == [mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE]
    whole, rest = asked[1], asked[2]
    assert rest[0] + rest[1] == whole[0] + whole[1]
    assert rest[0] == whole[0] + (2 << 20)
    memory._ask_for_huge_pages(x)
    assert len(asked) == 3
