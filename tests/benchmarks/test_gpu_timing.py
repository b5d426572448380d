"""What the timing of a GPU makes of a host that is slow, played without a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import timing
from benchmarks.gpu.timing import GpuRace
from solo_attn.bench import Race

MICROSECOND = 1e-6
KERNELS, HOST, DEVICE = 50, 20 * MICROSECOND, 4 * MICROSECOND  # of a run: its kernels, and what each takes


class Gpu:
    """A stream: the host's clock, when all that is enqueued will be done, and whether the cache is cold."""

    def __init__(self) -> None:
        self.now = self.idle = 0.0
        self.cold = False
        self.found_cold: list[bool] = []

    def launch(self, seconds: float) -> None:
        self.now += HOST
        self.idle = max(self.idle, self.now) + seconds

    def synchronize(self) -> None:
        self.now = max(self.now, self.idle)

    def amax(self) -> None:
        self.launch(100 * MICROSECOND)
        self.cold = True

    def run(self) -> None:
        self.found_cold.append(self.cold)
        self.cold = False
        for _ in range(KERNELS):
            self.launch(DEVICE)

    def run_that_waits(self) -> None:
        self.run()
        self.synchronize()
        self.launch(DEVICE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    played = Gpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = max(played.idle, played.now)

        def query(self) -> bool:
            return self.at <= played.now

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", played.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: played.launch(cycles * 5e-10))
    monkeypatch.setattr(timing, "larger_than_l2", lambda device: played)
    return played


def test_the_host_is_hidden(gpu: Gpu) -> None:
    simple = Race({"run": gpu.run}, "cuda")
    simple.round()
    assert simple.times()["run"].median > 0.9 * KERNELS * HOST, "what would be wrong"
    race = GpuRace({"run": gpu.run}, "cuda")
    race.round()
    assert race.times()["run"].median == pytest.approx(KERNELS * DEVICE)
    assert race.host_bound == []


def test_a_run_that_waits_is_said_to(gpu: Gpu) -> None:
    race = GpuRace({"run": gpu.run, "waits": gpu.run_that_waits}, "cuda")
    for _ in range(2):
        race.round()
    assert race.host_bound == ["waits"]
    assert race.times()["run"].median == pytest.approx(KERNELS * DEVICE)


def test_every_run_finds_the_cache_cold(gpu: Gpu) -> None:
    GpuRace({"run": gpu.run}, "cuda").round()
    assert len(gpu.found_cold) > 4
    assert all(gpu.found_cold)
