"""The benchmark of training and inference at a tiny size: what it times is proven, and what fails is said."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils._pytree import tree_map
from typer.testing import CliRunner

from benchmarks import ROOT
from benchmarks.end_to_end import dense_solo, run
from benchmarks.end_to_end.jobs import WHAT, Job, job_name, jobs
from benchmarks.end_to_end.model import TINY, candidates_of
from benchmarks.end_to_end.proof import CHECKED, DifferentError, Proof
from solo_attn.models import losses
from solo_attn.models.targets import assign


@pytest.fixture(scope="module")
def bench() -> run.Bench:
    return run.Bench(TINY, "cpu", 0, lambda part: part)


@pytest.fixture(autouse=True)
def limit_of_recompiling() -> Iterator[None]:
    """The benchmark sets its own, which other tests must not find."""
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


def test_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    done = CliRunner().invoke(run.app, ["--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "dry run: 12 rows, 0 failed, none of them kept"


def test_every_level_has_work(bench: run.Bench) -> None:
    images, targets = bench.prepare(2)
    found = candidates_of(bench.model, images)
    assert min(found) > 0
    assert sum(found) == 2 * TINY.candidates
    head, model = bench.model.head, bench.model
    assert all(len(x.cells) for x in assign(targets, TINY.size, head.num_grids, model.settings.scale_ranges))


@pytest.mark.parametrize("compiled", [False, True])
def test_proof(bench: run.Bench, compiled: bool) -> None:
    proof = bench.prove(compiled)
    names = {"fast", "fast, compiled", "dense, compiled"} if compiled else {"fast"}
    training, inference = proof["training"], proof["inference"]
    assert 0.1 < training.pop("dense")["loss_mask"] < 3
    assert training.keys() == names
    for apart in training.values():
        assert set(CHECKED) < apart.keys()
        assert max(apart.values()) < 1e-4
    assert min(inference.pop("dense")["instances"]) > 5
    assert inference == {name: {"without_a_twin": 0} for name in names}


def larger(x: torch.Tensor) -> torch.Tensor:
    return 1.1 * x if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def far_larger(x: torch.Tensor) -> torch.Tensor:
    """So much that the loss of a gated model shows it; it did not show 1.1 times."""
    return 10 * x if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def steeper(x: torch.Tensor) -> torch.Tensor:
    """The same with a larger gradient."""
    return x + 0.1 * (x - x.detach()) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize(
    ("part", "wrong", "what", "name", "said"),
    [
        ("mask_features", far_larger, "training", "fast, compiled", "loss_mask differs"),
        ("mask_features", larger, "inference", "fast, compiled", "instances differ"),
        ("features", larger, "training", "fast, compiled", "loss_category differs"),
        ("features", steeper, "training", "fast, compiled", "conv1.weight differs"),
        ("features", larger, "inference", "fast, compiled", "instances differ"),
        ("_losses", larger, "training", "dense, compiled", "loss_category differs"),
        ("_losses", steeper, "training", "dense, compiled", "conv1.weight differs"),
        ("_maps", larger, "inference", "dense, compiled", "instances differ"),
    ],
)
def test_a_wrong_compiler_is_found(
    bench: run.Bench,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    wrong: Callable[[torch.Tensor], torch.Tensor],
    what: str,
    name: str,
    said: str,
) -> None:
    """It fails alone, and is not timed."""

    def compiler(function: Any) -> Any:
        if function.__name__ != part:
            return function
        return lambda *args: tree_map(wrong, function(*args))

    monkeypatch.setattr(bench, "compiler", compiler)
    found = bench.prove(True)[what]
    assert said in found.pop(name)["failed"]
    assert not [other for other in found.values() if "failed" in other]


def test_what_cannot_be_compiled_is_a_row_that_says_so(
    bench: run.Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compiler(function: Any) -> Any:
        def fails(*args: Any) -> Any:
            raise BackendCompilerFailed(torch.compile, ValueError("no"), None)

        return fails if function.__name__ == "_maps" else function

    monkeypatch.setattr(bench, "compiler", compiler)
    result = run.go(bench, [("inference", 1, "float32", True)], tmp_path, math.inf)
    failed = {row["contender"]: row["failed"] for row in result["rows"] if "failed" in row}
    assert failed == {"dense, compiled": "BackendCompilerFailed: backend='compile' raised: ValueError: no"}
    assert len(result["rows"]) == 4


def test_this_library_beside_dense_stops_it(
    bench: run.Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(losses, "dice_loss_levels", off(losses, "dice_loss_levels", 1.01))
    with pytest.raises(DifferentError, match=r"training: .*loss_mask differs"):
        run.go(bench, [("training", 1, "float32", False)], tmp_path, math.inf)
    assert not list(tmp_path.iterdir())


def off(module: Any, name: str, by: float) -> Any:
    """A function that is a little wrong."""
    right = getattr(module, name)
    return lambda *args: right(*args) * by


@pytest.mark.parametrize(
    ("module", "name", "value", "said"),
    [
        (dense_solo, "category_loss", off(dense_solo, "category_loss", 1.01), "loss_category"),
        (dense_solo, "DICE_EPS", 10.0, "loss_mask"),
        (dense_solo.plain, "attention_residual", lambda logits, grid: logits, "loss_mask"),
        (dense_solo, "STRIDES", (400,) * 5, "instances"),
        (dense_solo, "points_nms", lambda scores: scores, "instances differ"),
        (dense_solo.plain, "matrix_nms", lambda masks, labels, scores, sigma: scores, "instances differ"),
    ],
)
def test_disagreement_is_found(
    bench: run.Bench, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any, said: str
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(DifferentError, match=said):
        bench.prove(False)


def test_what_fails_is_recorded_and_the_others_run() -> None:
    held = []

    def fails_later() -> None:
        held.append(None)
        if len(held) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB\nand more")

    found, failed = run.race({"fine": lambda: None, "large": fails_later}, "cpu", 0)
    assert failed == {"large": "OutOfMemoryError: CUDA out of memory. Tried to allocate 99 GiB"}
    assert list(found) == ["fine"]
    assert run.race({"large": fails_later}, "cpu", 0)[0] == {}


def test_what_is_left_out_is_listed_and_done_next(
    bench: run.Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, told, proven = [0.0], [], []

    def prove(compiled: bool) -> Proof:
        proven.append(compiled)
        now[0] += 2 * compiled
        names = ["fast", "dense", *(["fast, compiled", "dense, compiled"] if compiled else [])]
        return {what: {name: {} for name in names} for what in WHAT}

    def measure(job: Job, unproven: Any) -> tuple[list[dict[str, Any]], list[int]]:
        what, batch, dtype, compiled = job
        now[0] += 1
        told.append((what, dtype, compiled))
        names = ["fast", "dense", *(["fast, compiled"] if compiled else [])]
        row = {"what": what, "batch": batch, "dtype": dtype, "failed": f"{compiled}"}
        return [{**row, "contender": name} for name in names], [1, 2]

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "prove", prove)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    todo = list(jobs((1,), ("float32", "bfloat16"), True))
    assert [job[3] for job in todo] == [False] * 4 + [True] * 4

    run.go(bench, todo, tmp_path, 4)
    assert proven == [False], "nothing compiled is due"
    first = run.go(bench, todo, tmp_path, 6)
    assert (len(told), proven) == (4, [False, False, True])
    assert first["left_out"] == [job_name(job) for job in todo[4:]], "the proof has taken its time"
    second = run.go(bench, todo, tmp_path, 99)
    assert (len(told), proven) == (8, [False, False, True, False]), "what was proven stays so"
    assert second["left_out"] == []
    assert len(second["rows"]) == 4 * 3, "the race with compiled contenders replaces the one without"
    assert all(row["failed"] == "True" for row in second["rows"])
    stored = json.loads((tmp_path / "end_to_end.json").read_text())
    assert stored == second
    assert "dense, compiled" in stored["proof"]["training"]
    for key in ("commit", "device", "date", "torch"):
        assert key in stored["environment"]

    stored["environment"]["commit"] = "another"
    (tmp_path / "end_to_end.json").write_text(json.dumps(stored))
    assert run.go(bench, todo, tmp_path, now[0])["rows"] == [], "another commit's are not kept"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_what_is_too_large_for_the_memory_fails_and_kills_nothing() -> None:
    """In a process of its own, which keeps a quarter of the memory from itself."""
    code = """
import re, torch
from benchmarks.end_to_end import memory
torch.empty(1 << 20).sum()
spare = int(re.search(r"MemAvailable: +(\\d+)", open("/proc/meminfo").read())[1]) << 10
memory.RESERVE = spare // 4
more = spare - memory.RESERVE
limit = memory.keep_to_memory()
small = torch.empty(more // 2, dtype=torch.uint8)
try:
    torch.empty(more, dtype=torch.uint8)
except RuntimeError as error:
    print("refused:", error)
assert memory.keep_to_memory() <= limit, "a limit that is there already stays"
memory.RESERVE = 1 << 60
try:
    memory.keep_to_memory()
except MemoryError as error:
    print(error)
"""
    told = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert "refused: " in told
    assert "you tried to allocate" in told
    assert "expected 2,305,843,009,213,693,952 bytes of available memory at least, got " in told


def test_a_cpu_is_kept_to_its_memory(
    bench: run.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only a CPU; what fails is stored with the limit."""
    monkeypatch.setattr(run, "Bench", lambda *_: bench)
    monkeypatch.setattr(run, "keep_to_memory", lambda: 123)
    monkeypatch.setattr(bench, "prove", lambda compiled: {"training": {}, "inference": {}})
    row = {"what": "training", "batch": 1, "dtype": "float32", "contender": "dense", "failed": "too large"}
    monkeypatch.setattr(bench, "measure", lambda *_: ([dict(row)], [1]))
    with pytest.raises(typer.Exit):
        run.run("cpu", [1], ["float32"], compiled=False, out=tmp_path, minutes=9.0, size=TINY.size)
    (first, *_) = json.loads((tmp_path / "end_to_end.json").read_text())["rows"]
    assert first == {**row, "limit_bytes": 123}
