"""Threads, growth and huge pages: what is measured runs at tiny sizes, and the page says all of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import ROOT
from benchmarks.end_to_end import scale, scale_points
from benchmarks.ops import builds, threads
from benchmarks.peers.loading import need
from benchmarks.report import scaling, stored, where_it_loses
from tools.forked import CRASHED, Ended

ABOUT = {"device": "a CPU", "threads": 2, "torch": "2", "commit": "abc", "date": "2026-01-01T00:00"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    def keep(name: str, found: Any) -> None:
        monkeypatch.setattr(stored, "kept", lambda key, machine=stored.CPU: found if key == name else None)

    return keep


def test_both_numbers_of_threads_run_every_op() -> None:
    before = torch.get_num_threads()
    try:
        for count, draw in ((2, threads.large_masks), (3, threads.cell_logits)):
            side = () if draw is threads.large_masks else (threads.SIDE,)
            runs = dict(threads.runs_of(*draw(count, threads.TINY, *side)))
            assert len(runs) == 5
            for run in runs.values():
                one, two = (threads.with_threads(n, run) for n in (1, 2))
                assert torch.get_num_threads() == 2
                same = zip(one, two, strict=True)
                assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in same)
    finally:
        torch.set_num_threads(before)


def of_process(one: float, two: float, busy: float | None, spread: float) -> dict[str, Any]:
    """What `seconds_of` gives of a race by threads."""
    seconds = {"1": {"median": one, "runs": 9}, "2": {"median": two, "runs": 9}}
    return {"seconds": seconds, "busy": busy, "spread": spread}


def test_processes_are_put_together() -> None:
    races = [of_process(4.0, 2.0, 0.1, 0.3), of_process(5.0, 3.0, 0.2, 0.1)]
    found = threads.together(races)
    assert found["seconds"]["2"] == [{"median": 2.0, "runs": 9}, {"median": 3.0, "runs": 9}]
    assert [time["median"] for time in found["seconds"]["1"]] == [4.0, 5.0]
    assert (found["busy"], found["spread"]) == (0.2, 0.3)
    assert threads.together([of_process(4.0, 2.0, None, 0.3)])["busy"] is None


def test_the_page_reads_what_is_stored_of_threads(store: Callable[[str, Any], None]) -> None:
    before = torch.get_num_threads()
    try:
        names = list(threads.measured(0))
    finally:
        torch.set_num_threads(before)
    first, second = ({name: of_process(0.006, two, 0.0, 0.01) for name in names} for two in (0.003, 0.004))
    store("threads", {"environment": ABOUT, **threads.result_of([first, second])})
    text = scaling.threads()
    assert text.count("| 1.75x | 1.50 to 2.00x |") == 5 * len(threads.COUNTS)
    assert "500 small masks, logits 42 x 84" in text
    assert "Writing 106 MiB" in text


@pytest.mark.slow
def test_threads_are_measured_in_processes() -> None:
    command = [sys.executable, "-m", "benchmarks.ops.threads", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("x as fast") == 3 + 5 * len(threads.COUNTS)


@pytest.mark.slow
def test_builds_take_turns() -> None:
    """This checkout against itself; a case that one of them has not, or in other sizes, is left out."""
    both = {name: builds.Build(ROOT) for name in ("old", "new")}
    try:
        row = builds.race(both, ("mask_iou", 0, "forward"), 0)
        assert row is not None
        assert row["what"].startswith("500 masks")
        assert row["ratio"] > 0
        assert builds.race(both, ("mask_iou", 0, "backward"), 0) is None
        assert builds.race(both, ("mask_iou", 9, "forward"), 0) is None
    finally:
        for build in both.values():
            build.close()


def test_the_page_says_what_changed(store: Callable[[str, Any], None]) -> None:
    times = {name: {"median": seconds} for name, seconds in (("old", 0.003), ("new", 0.002))}
    row = {"op": "mask_bits", "what": "2 cells", "pass": "forward", "seconds": times, "ratio": 1.5}
    asking = {"old": {"median": 1e-4}, "new": {"median": 2e-4}}
    store("builds", {"environment": ABOUT, "old": "abc1234", "asking": asking, "rows": [row]})
    page = scaling.builds()
    assert "| mask_bits | 2 cells | forward | 3.00 | 2.00 | 1.50x |" in page
    assert "commit abc1234" in page
    assert "takes 0.20 ms" in page
    store("builds", None)
    assert scaling.builds() == "Not measured yet."


@pytest.mark.slow
def test_every_point_runs() -> None:
    need("mmdet.models.layers")
    command = [sys.executable, "-m", "benchmarks.end_to_end.scale", "--dry-run", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'seconds'") == sum(
        len(axis.tiny) * len(axis.makers) for axis in scale_points.AXES.values()
    )


@pytest.mark.slow
def test_a_point_without_enough_memory_says_so() -> None:
    """In a process of its own: whoever forks must not have computed."""
    code = """
from benchmarks.end_to_end import scale, scale_points
makers = scale_points.AXES["mask_bits"].makers
axis = scale_points.Axis("", "", (3000,), (), {"solo-attn": makers["solo-attn"]})
scale.MEMORY = 64 << 20
print(scale.measure(axis, 1, False, float("inf"))[0]["out_of"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["memory"], done.stderr


def test_a_limit_is_an_outcome_and_a_fault_is_not() -> None:
    full = Ended(CRASHED, 1.0, 0, "RuntimeError: DefaultCPUAllocator: can't allocate memory")
    assert scale.outcome(full) == {"out_of": "memory"}
    assert scale.outcome(Ended(-signal.SIGXCPU, scale.SECONDS, 0, "")) == {"out_of": "time"}
    assert scale.outcome(Ended(0, 1.0, 0, 'said\n{"seconds": 2}\n')) == {"seconds": 2}
    with pytest.raises(RuntimeError, match="status 99: KeyError"):
        scale.outcome(Ended(CRASHED, 1.0, 0, "KeyError"))


def row(contender: str, size: int, seconds: float) -> dict[str, Any]:
    return {"contender": contender, "size": size, "seconds": seconds, "peak_bytes": size << 20}


def test_the_page_of_growth(store: Callable[[str, Any], None], tmp_path: Any) -> None:
    rows = [row("solo-attn", n, 1e-6 * n**2) for n in (10, 100, 1000)]
    rows += [row("PyTorch", 10, 1e-5), {"contender": "PyTorch", "size": 100, "out_of": "memory"}]
    limits = {"memory_bytes": 6 << 30, "processor_seconds": 40}
    axis = {"what": "an op", "unit": "masks", "busy": 0.0, "rows": rows}
    store("scale", {"environment": ABOUT, "limits": limits, "axes": {"op": axis}})
    text = scaling.growth()
    assert "| an op: masks | solo-attn | 1,000 | 1,000 | 1,000 | 2.00 | 1.00 | – |" in text
    assert "| an op: masks | PyTorch | 10 | 0.01 | 10 | – | – | memory at 100 |" in text
    assert "commit abc" in text
    assert ["an op: 10 masks", "cpu", "PyTorch", "0.01 ms", "0.10 ms"] in where_it_loses.losses()
    scaling.plot(tmp_path / "scale.svg")
    assert "masks" in (tmp_path / "scale.svg").read_text(encoding="utf-8")


def of_processes(*by_threads: tuple[float, ...]) -> dict[str, Any]:
    """What is stored of a race: the median of each process."""
    return {"seconds": {str(1 + n): [{"median": s} for s in found] for n, found in enumerate(by_threads)}}


def test_the_pages_of_threads_and_huge_pages(store: Callable[[str, Any], None]) -> None:
    store(
        "threads",
        {
            "environment": ABOUT,
            "start": of_processes((4e-6, 5e-6, 3e-6), (9e-6, 9e-6, 9e-6)),
            "computed": of_processes((0.0019, 0.0019, 0.0019), (0.001, 0.001, 0.001)),
            "memory": {"bytes": 5 << 20, **of_processes((0.0065, 0.004, 0.009), (0.005, 0.0032, 0.001))},
            "rows": [
                {
                    "op": "mask_bits",
                    "masks": "1 mask",
                    "level": [168, 336],
                    "call": [{"median": 0.001}, {"median": 0.001}, {"median": 0.002}],
                    "spread": 0.12,
                    **of_processes((0.004, 0.005, 0.003), (0.002, 0.004, 0.002)),
                }
            ],
        },
    )
    text = scaling.threads()
    assert "| mask_bits | 1 mask, logits 168 x 336 | 4.00 | 2.00 | 1.50x | 1.25 to 2.00x | 1.60x |" in text
    assert "medians over 3 processes" in text
    assert "takes 4 us with one and 9 us with two" in text
    assert "Writing 5 MiB" in text
    assert "agree to 5% but for mask_bits (1 mask) 12%." in text
    assert "(PyTorch's lgamma) gains 1.90x" in text
    assert "takes 6.5 ms with one thread and 3.2 ms with two, 1.30x" in text
    times = {"0": {"median": 3.0}, "1": {"median": 2.0}}
    store("huge_pages", {"environment": ABOUT, "size": [384, 768], "rows": {"training step": times}})
    assert "| training step | 3.00 | 2.00 | 1.50x |" in scaling.huge_pages()
    entry = {
        "op": "attention_residual",
        "what": "a size",
        "ours": "cpu",
        "memory": {"cpu": 400, scaling.FIRST_RESULT: 300},
        "seconds": {
            name: {"median": value}
            for name, value in (
                ("cpu", 0.04),
                ("PyTorch", 0.3),
                ("floor", 0.02),
                (scaling.FIRST_RESULT, 0.15),
            )
        },
    }
    store("ops", {"environment": ABOUT, "benchmarks": {"attention_residual": entry}})
    assert "a size: 40.0 ms, and 150 ms where no earlier" in scaling.kept_memory()
    assert "beside 300 ms of PyTorch" in scaling.kept_memory()
    assert not where_it_loses.losses(), "the first result is no other library's"
    store("nothing", None)
    assert {scaling.kept_memory()} == {"Not measured yet."}
    assert {scaling.threads(), scaling.growth(), scaling.huge_pages()} == {"Not measured yet."}
