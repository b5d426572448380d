"""Times that can be compared: who runs when, and what is made of it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from solo_attn import attention_residual
from solo_attn.bench import Race, Times, peak_memory, quiet, run_until_steady, timing, wait_until_quiet


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


def runs_of_a_round(monkeypatch, **seconds):
    """How often each contender runs in a round; their first runs take these seconds, one after the other."""
    asked = []

    def time_of(race, run):
        asked.append(run)
        of_it = seconds[run]
        return of_it.pop(0) if len(of_it) > 1 else of_it[0]

    monkeypatch.setattr(Race, "_time", time_of)
    race = Race({name: name for name in seconds})
    asked.clear()
    race.round()
    return {name: asked.count(name) for name in seconds}


def test_one_run_that_was_held_up_does_not_make_a_contender_long(monkeypatch):
    # The first run compiles, the second one was held up.
    assert runs_of_a_round(monkeypatch, held_up=[0.1, 0.5, 0.001], other=[0.001]) == {
        "held_up": 4,
        "other": 4,
    }


def test_contenders_about_as_fast_as_each_other_run_equally_often(monkeypatch):
    found = runs_of_a_round(monkeypatch, floor=[0.001], a_bit_below=[0.019], a_bit_above=[0.021], above=[0.1])
    assert found == {"floor": 4, "a_bit_below": 4, "a_bit_above": 4, "above": 1}
    assert runs_of_a_round(monkeypatch, long=[0.021], longer=[0.039]) == {"long": 1, "longer": 1}


def test_what_takes_seconds_runs_only_once_before_it_counts(monkeypatch):
    asked = []
    monkeypatch.setattr(Race, "_time", lambda race, run: asked.append(run) or 2.0)
    Race({"long": "long"})
    assert asked == ["long"]


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


class FakeRace:
    """Batches of given medians, for one contender."""

    def __init__(self, medians):
        self.medians, self.rounds = iter(medians), 0

    def round(self):
        self.rounds += 1

    def take_batch(self):
        return {"ours": [next(self.medians)], "theirs": [1.0]}


def test_a_race_goes_on_until_its_medians_stand_still():
    race = FakeRace([2.0, 1.0, 1.0, 1.02, 9.0])
    assert run_until_steady(race, rounds=5) == pytest.approx(0.02)
    assert race.rounds == 20
    race = FakeRace([1.0, 2.0] * 4)
    assert run_until_steady(race, rounds=1) == pytest.approx(0.5)  # it says that it is not steady
    assert race.rounds == 8


def test_a_batch_is_what_came_since_the_last():
    race = Race({"a": lambda: time.sleep(0.03)})
    race.round()
    assert len(race.take_batch()["a"]) == 1
    for _ in range(2):
        race.round()
    assert len(race.take_batch()["a"]) == 2
    assert race.times()["a"].runs == 3


def test_waiting_for_a_quiet_machine(monkeypatch):
    found = iter([1.5, 0.8, 0.1, 0.0])
    monkeypatch.setattr(quiet, "busy_cores", lambda: next(found))
    assert wait_until_quiet().busy == 0.1
    monkeypatch.setattr(quiet, "busy_cores", lambda: 2.0)
    assert wait_until_quiet(most=0.0).busy == 2.0  # it gave up, and says so
    monkeypatch.setattr(quiet, "busy_cores", lambda: None)
    assert wait_until_quiet() == quiet.Quiet(None, 0.0)


def test_this_process_counts_as_busy():
    found = quiet.busy_cores(0.05)
    if found is None:
        pytest.skip("only Linux says how busy it is")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert quiet.busy_cores(0.5) > 0.2
    finally:
        stop.set()
        worker.join()


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
    features, logits = torch.zeros(1, 2, 13, 13), torch.zeros(1, 169, 168, 336)  # 36 MiB
    for _ in range(2):  # also where the memory of an earlier result is kept for the next one
        found = peak_memory(lambda: attention_residual(logits, features))
        assert found is not None
        assert found > 32 << 20
    nothing = peak_memory(lambda: None)
    assert nothing is not None
    assert nothing < 8 << 20
