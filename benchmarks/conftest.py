"""Benchmarks: ``make bench``, or ``python -m pytest benchmarks/bench_matrix_nms.py``.

pytest-benchmark counts rounds and stores what is found; a round runs every contender once, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from solo_attn.bench import FLOOR, Case, Race, backward, environment, forward, peak_memory
from solo_attn.bench.timing import Contender

THREADS = 2
SECONDS = 4.0  # of the rounds of one benchmark, of which there are at least three


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the ops run: cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def race(benchmark: Any, device: str) -> Callable[..., None]:
    """Runs contenders, the first of which is ours, and stores their times, memory and what else is said."""

    def run(
        contenders: Mapping[str, Contender], memory: Mapping[str, int] | None = None, **said: Any
    ) -> None:
        if memory is None:
            peaks = {name: peak_memory(f, device) for name, f in contenders.items() if name != FLOOR}
            memory = {name: peak for name, peak in peaks.items() if peak is not None}
        found = Race(contenders, device)
        benchmark.pedantic(found.round, rounds=found.affordable(SECONDS), iterations=1)
        times = {name: times.as_dict() for name, times in found.times().items()}
        benchmark.extra_info.update(said, ours=next(iter(contenders)), seconds=times, memory=dict(memory))

    return run


@pytest.fixture
def measure(race: Callable[..., None], device: str) -> Callable[..., None]:
    """Both directions of a case that has them: ``measure(case, "forward")``."""

    def run(case: Case, direction: str, compiled: bool = True) -> None:
        prove = {"forward": forward, "backward": backward}[direction]
        said = {"op": case.op, "what": case.what, "direction": direction, "limit": case.limit}
        race(prove(case, device, compiled=compiled), **said)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a number was measured on, as all stored results say it; not the machine's name on its network."""
    machine_info.clear()
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    machine_info.update(environment(str(config.getoption("--device"))))


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """It stands with the machine."""
    commit_info.clear()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Keep of each benchmark what its contenders took: the statistics of whole rounds say nothing."""
    kept = {entry["name"].removeprefix("test_"): entry["extra_info"] for entry in output_json["benchmarks"]}
    facts = output_json["machine_info"]
    output_json.clear()
    output_json.update(environment=facts, benchmarks=kept)
