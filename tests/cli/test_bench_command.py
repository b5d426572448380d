"""``solo-attn bench``."""

from __future__ import annotations

import re

import command_line
import pytest
from small_cases import SMALL

from solo_attn.backends import OPS
from solo_attn.cli import bench


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", SMALL)
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    return lambda *args: command_line.run("bench", "--device", "cpu", *args, COLUMNS="110")


def test_a_row_for_every_case(run):
    code, output = run()
    assert code == 0
    for op in OPS:
        assert re.search(rf"^\s*{op}\s*$", output, flags=re.MULTILINE)
    for name in ("cpu", "reference", "PyTorch", "floor"):
        assert name in output
    rows = [line for line in output.splitlines() if re.search(r"(\s+[\d.]+){6}\s*$", line)]
    assert len(rows) == 12, "four times and two ratios for each case"
    assert "threads, torch" in output


def test_chosen_ops(run):
    code, output = run("--op", "mask_iou", "--op", "matrix_nms")
    assert code == 0
    assert "mask_iou" in output
    assert "matrix_nms" in output
    assert "dice_loss" not in output


def test_an_unknown_op(run):
    code, output = run("--op", "mask_nms")
    assert code == 2
    assert "expected --op to be one of grid_attention" in output


def test_sizes_are_those_of_cases():
    """What the command changes in the cases exists."""
    from solo_attn.bench import CASES

    for op, sizes in bench.SIZES.items():
        for make in CASES[op]:
            assert set(sizes) <= set(SMALL[op]), make
