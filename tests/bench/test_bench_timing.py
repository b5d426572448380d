"""Times that can be compared: who runs when, and what is made of it."""

from __future__ import annotations

import time

import pytest
import torch

from solo_attn.bench import Race, Times, peak_memory, timing


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "_SHORT", 0.0)  # nothing is short: one run each
    order = []
    race = Race({name: lambda name=name: order.append(name) for name in "abc"})
    order.clear()
    for _ in range(3):
        race.round()
    assert "".join(order) == "abcabcabc"
    assert {name: found.runs for name, found in race.times().items()} == dict.fromkeys("abc", 3)


def test_what_is_short_runs_in_a_row_and_the_first_does_not_count():
    order = []
    race = Race({"short": lambda: order.append("s"), "long": lambda: (order.append("l"), time.sleep(0.03))})
    order.clear()
    race.round()
    assert "".join(order) == "ssssl"
    assert [found.runs for found in race.times().values()] == [3, 1]


def test_times_are_those_of_the_runs():
    race = Race({"slow": lambda: time.sleep(0.03), "fast": lambda: None})
    for _ in range(3):
        race.round()
    found = race.times()
    assert 0.03 <= found["slow"].median < 0.3
    assert found["fast"].median < 0.01
    assert found["slow"].low <= found["slow"].median <= found["slow"].high


def test_medians():
    assert Times.of([3.0, 1.0, 100.0, 2.0, 4.0]) == Times(3.0, 2.0, 4.0, 5)
    assert Times.of([2.0]).as_dict() == {"median": 2.0, "low": 2.0, "high": 2.0, "runs": 1}


def test_rounds_that_fit(monkeypatch):
    race = Race({"a": lambda: time.sleep(0.05), "b": lambda: time.sleep(0.05)})
    assert 3 <= race.affordable(1.0) <= 10
    assert race.affordable(0.0) == 3
    assert race.affordable(0.0, least=1) == 1
    assert race.affordable(1e9, most=7) == 7


def test_an_error_is_not_a_time():
    with pytest.raises(ZeroDivisionError):
        Race({"broken": lambda: 1 / 0})


def test_peak_memory():
    def twice():
        return torch.ones(48 << 20, dtype=torch.uint8) + torch.ones(48 << 20, dtype=torch.uint8)

    found = peak_memory(twice)
    if found is None:
        pytest.skip("the peak memory of this process cannot be read here")
    assert 140 << 20 <= found < 200 << 20  # two inputs and their sum, 144 MiB
    nothing = peak_memory(lambda: None)
    assert nothing is not None
    assert nothing < 8 << 20
