"""The README's tables of speed, from results that are made up here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import readme, speed, stored
from solo_attn.bench import COMPILED, FLOOR, PLAIN


def entry(direction: str = "forward", **seconds: float) -> dict[str, Any]:
    others = {
        PLAIN: 0.1,
        COMPILED: 0.08,
        "reference": 0.2,
        FLOOR: 0.005,
        "mmdetection": 0.5,
        "pycocotools": 0.2,
    }
    every = {"cpu": 0.01, **others, **seconds}
    return {
        "op": "an_op",
        "what": "a case",
        "direction": direction,
        "ours": "cpu",
        "seconds": {name: {"median": value} for name, value in every.items()},
        "memory": {name: 100 << 20 if name == "cpu" else 400 << 20 for name in every},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    peers = {goal.name: entry() for goal in speed.GOALS if goal.name.startswith("mmdet")}
    ops = {goal.name: entry() for goal in speed.GOALS if goal.name not in peers}
    ops["dice_loss_backward"] = entry("backward", floor=0.02)
    facts = {"device": "a CPU", "threads": 2, "torch": "2.11", "commit": "abc", "date": "2026-01-02"}
    return {
        "ops": {"environment": facts, "benchmarks": ops},
        "mmdet": {"environment": facts, "benchmarks": peers},
    }


def test_a_row_for_every_goal(results: dict[str, Any]) -> None:
    lines = speed.goal_table(results.__getitem__).splitlines()
    assert len(lines) == 2 + len(speed.GOALS)
    assert lines[4].endswith("| pycocotools | 200 | 10.0 | 20x | 10x | 30x |")
    assert "**10x**" not in lines[5], "against PyTorch 10x is more than the 8x it must be"


def test_what_misses_is_bold_and_named(results: dict[str, Any]) -> None:
    assert speed.missed(results.__getitem__) == []
    results["ops"]["benchmarks"]["mask_iou"] = entry(cpu=0.05)
    results["mmdet"]["benchmarks"]["mmdet_train"]["memory"]["cpu"] = 300 << 20
    assert speed.missed(results.__getitem__) == ["mask_iou", "mmdet_train"]
    assert "| **4.0x** | 10x |" in speed.goal_table(results.__getitem__)


def test_each_op_against_everything(results: dict[str, Any]) -> None:
    rows = speed.op_table(results.__getitem__).splitlines()
    assert len(rows) == 2 + len(results["ops"]["benchmarks"])
    assert rows[2] == "| an_op | a case | 10.0 | 100 | 80.0 | 200 | 5.00 | 2.0 | 100 | 400 |"
    assert rows[-1].startswith("| an_op | a case, backward |")
    assert "| 20.0 | 0.5 |" in rows[-1], "faster than the floor shows as it is"


def test_a_quick_run_has_no_torch_compile(results: dict[str, Any]) -> None:
    for found in results["ops"]["benchmarks"].values():
        del found["seconds"][COMPILED]
    assert "| 100 | – | 200 |" in speed.op_table(results.__getitem__)
    table = speed.goal_table(results.__getitem__)
    assert len(table.splitlines()) == 2 + len(speed.GOALS)
    (line,) = (line for line in table.splitlines() if "not measured" in line)
    assert "| torch.compile |" in line


def test_the_block_follows_the_results(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "kept", results.__getitem__)
    text = readme.speed()
    assert "a CPU, 2 threads, torch 2.11, commit abc, 2026-01-02" in text
    assert "100 MiB against 400 (25%; at most 33% was aimed at)" in text
    changed = copy.deepcopy(results)
    changed["mmdet"]["benchmarks"]["mmdet_nms"]["seconds"]["mmdetection"]["median"] *= 2
    monkeypatch.setattr(stored, "kept", changed.__getitem__)
    assert readme.speed() != text


def test_the_same_results_draw_the_same_plot(results: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        speed.plot(results.__getitem__, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"dice loss backward" in first
    assert len(first) < 100_000
