"""``solo-attn bench``."""

from __future__ import annotations

import re

import pytest
from test_bench_cases import SMALL
from typer.testing import CliRunner

from solo_attn.backends import OPS
from solo_attn.cli import app, bench


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", SMALL)
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    monkeypatch.setenv("COLUMNS", "110")
    return lambda *args: CliRunner().invoke(app, ["bench", "--device", "cpu", *args])


def test_a_row_for_every_case(run):
    done = run()
    assert done.exit_code == 0, done.output
    for op in OPS:
        assert re.search(rf"^\s*{op}\s*$", done.output, flags=re.MULTILINE)
    for name in ("cpu", "reference", "PyTorch", "floor"):
        assert name in done.output
    rows = [line for line in done.output.splitlines() if re.search(r"(\s+[\d.]+){6}\s*$", line)]
    assert len(rows) == 10, "four times and two ratios for each case"
    assert "threads, torch" in done.output


def test_chosen_ops(run):
    done = run("--op", "mask_iou", "--op", "matrix_nms")
    assert done.exit_code == 0, done.output
    assert "mask_iou" in done.output
    assert "matrix_nms" in done.output
    assert "dice_loss" not in done.output


def test_an_unknown_op(run):
    done = run("--op", "mask_nms")
    assert done.exit_code == 2
    assert "expected --op to be one of grid_attention" in done.output


def test_sizes_are_those_of_cases():
    """What the command changes in the cases exists."""
    from solo_attn.bench import CASES

    for op, sizes in bench.SIZES.items():
        for make in CASES[op]:
            assert set(sizes) <= set(SMALL[op]), make
