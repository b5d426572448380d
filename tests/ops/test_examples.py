"""The example in each op's docstring gives what it says."""

from __future__ import annotations

import doctest

import pytest
import torch

import solo_attn
from solo_attn.backends import OPS


@pytest.mark.parametrize("op", OPS)
def test_the_example(op: str) -> None:
    function = getattr(solo_attn, op)
    # Copied from the page into a shell: the public names and torch are all that it needs.
    names = {"torch": torch, **{name: getattr(solo_attn, name) for name in solo_attn.__all__}}
    (example,) = doctest.DocTestFinder(recurse=False).find(function, op, globs=names)
    assert 2 <= len(example.examples) <= 3
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=report.append).failed == 0, "".join(report)
