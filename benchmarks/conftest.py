"""Benchmarks: ``make bench``, or ``python -m pytest benchmarks/ops/bench_matrix_nms.py``.

pytest-benchmark counts rounds and stores what is found; a round runs every contender once, in turn.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_attn.bench import (
    FLOOR,
    Case,
    Race,
    backward,
    environment,
    forward,
    peak_memory,
    run_until_steady,
    wait_until_quiet,
)
from solo_attn.bench.cases import MASK_SIZE, MASKS
from solo_attn.bench.timing import Contender
from tools.real_data import find

THREADS = 2
SECONDS = 2.0  # of a batch of rounds, of which there is at least one; a race has three batches or more


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the ops run: cpu or cuda")
    parser.addoption("--quick", action="store_true", help="one round each, without torch.compile")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def predicted_masks() -> tuple[Tensor, Tensor, Tensor]:
    """Predictions of models on COCO images, if they are there (tools/real_data.py).

    Bool [n, 200, 336], labels and scores of the busiest images: images apart, so labels made to differ.
    """
    import pycocotools.mask as coco_mask

    pool = find("yolact_pool")
    if pool is None:
        pytest.skip("no real data yolact_pool (tools/real_data.py)")
    with gzip.open(pool / "pool_A.json.gz", "rt", encoding="utf-8") as file:
        results = json.load(file)
    masks, labels, scores = [], [], []
    for number, (image, _) in enumerate(Counter(r["image_id"] for r in results).most_common()):
        for result in (r for r in results if r["image_id"] == image):
            mask = torch.from_numpy(coco_mask.decode(result["segmentation"])).float()
            masks.append(F.interpolate(mask[None, None], MASK_SIZE, mode="area")[0, 0] > 0.5)
            labels.append(1000 * number + result["category_id"])
            scores.append(result["score"])
        if len(masks) >= MASKS:
            break
    return torch.stack(masks)[:MASKS], torch.tensor(labels)[:MASKS], torch.tensor(scores)[:MASKS]


def usual_peak(run: Contender, device: str, times: int) -> int | None:
    """The median of some peaks: by a third one differs from the next where an allocator has free pieces."""
    peaks = [peak for _ in range(times) if (peak := peak_memory(run, device)) is not None]
    return int(median(peaks)) if peaks else None


@pytest.fixture
def race(benchmark: Any, device: str, quick: bool) -> Callable[..., None]:
    """Runs contenders, the first of which is ours, and stores their times, memory and other facts."""

    def run(
        contenders: Mapping[str, Contender], memory: Mapping[str, int] | None = None, **said: Any
    ) -> None:
        if memory is None:
            peaks = {
                name: usual_peak(f, device, 1 if quick else 3)
                for name, f in contenders.items()
                if name != FLOOR
            }
            memory = {name: peak for name, peak in peaks.items() if peak is not None}
        found = Race(contenders, device)
        about: dict[str, Any] = {"ours": next(iter(contenders)), "memory": dict(memory)}
        if quick:
            benchmark.pedantic(found.round)
        else:
            about["busy"] = wait_until_quiet().busy
            rounds = found.affordable(SECONDS, least=1)
            about["spread"] = benchmark.pedantic(run_until_steady, args=(found, rounds))
        times = {name: times.as_dict() for name, times in found.times().items()}
        benchmark.extra_info.update(said, seconds=times, **about)

    return run


@pytest.fixture
def measure(race: Callable[..., None], device: str, quick: bool) -> Callable[..., None]:
    """Both directions of a case that has them: ``measure(case, "forward")``."""

    def run(case: Case, direction: str) -> None:
        prove = {"forward": forward, "backward": backward}[direction]
        said = {"op": case.op, "what": case.what, "direction": direction, "limit": case.limit}
        race(prove(case, device, compiled=not quick), **said)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Machine and versions, as in all stored results, without the machine's host name."""
    machine_info.clear()
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    machine_info.update(environment(str(config.getoption("--device"))))


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """It stands with the machine."""
    commit_info.clear()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Keep the contenders' times of each benchmark: the statistics of whole rounds are meaningless."""
    kept = {entry["name"].removeprefix("test_"): entry["extra_info"] for entry in output_json["benchmarks"]}
    facts = output_json["machine_info"]
    output_json.clear()
    output_json.update(environment=facts, benchmarks=kept)
