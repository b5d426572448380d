"""Runs in processes of their own: what they are given, how they end, and what reaches the caller."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import run
from lightning.pytorch.callbacks import Timer
from rich.console import Console

from solo_attn._utils.errors import UsageError
from solo_attn._utils.files import alone_in
from solo_attn._utils.signals import Noted, SignalledError, signal_pending
from solo_attn.data import DatasetError
from solo_attn.models import load_model
from solo_attn.training import (
    Config,
    ConfigError,
    TrainingError,
    UnfinishedError,
    compare,
    demo,
    parallel,
    worker,
)
from solo_attn.training.callbacks import Limits
from solo_attn.training.runs import Run

MakeConfig = Callable[..., Config]

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked here"
)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Forks in place of spawned processes begin at once, and do what a test has put in place of `train`."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    return lambda fake: monkeypatch.setattr(worker, "train", fake)


def runs_of(config: Config, folder: Path, count: int) -> list[Run]:
    return [Run(f"S{number}", folder / "runs" / f"s{number}", config) for number in range(count)]


def finish(folder: Path) -> None:
    metrics = {"ap": 0.123, "ap50": 0.456}
    stored = {"metrics": metrics, "test_metrics": None, "seconds": 7.2}
    (folder / "result.json").write_text(json.dumps(stored))


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.02)


def until_a_signal(folder: Path) -> None:
    """Train until a signal comes, and save half a second later."""
    noted = Noted()
    noted.listen()
    (folder / "pid").write_text(str(os.getpid()))
    while noted.signum is None:
        time.sleep(0.01)
    assert signal_pending()
    time.sleep(0.5)
    (folder / "saved").touch()
    raise SignalledError("train: ended", noted.signum)


@needs_fork
def test_so_many_at_a_time_in_their_order(
    config: MakeConfig,
    tmp_path: Path,
    forked: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has its share of the threads, and its own output."""

    def train(
        config: Config,
        folder: Path,
        *,
        resume: bool,
        deadline: float | None,
        callbacks: list[worker.Tell],
        console: Console,
    ) -> None:
        assert resume
        callbacks[0].pipe.send_bytes(pickle.dumps(0.25))
        (folder / "begun").write_text(f"{time.monotonic()}")
        wait_for(lambda: folder.name != "s0" or (folder.parent / "s2" / "ended").exists())
        time.sleep(0.2)
        console.print(f"{folder.name}: {torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']} {deadline}")
        finish(folder)
        (folder / "ended").write_text(f"{time.monotonic()}")

    forked(train)
    monkeypatch.setattr(parallel, "_LINES", 0.1)
    runs = runs_of(config(), tmp_path, 4)
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(5)
    try:
        parallel.train_in_processes(runs, 2, time.monotonic() + 1e6, Console(width=200))
    finally:
        torch.set_num_threads(threads)
    assert os.environ.get("OMP_NUM_THREADS") == before
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "4 runs, 2 at a time with 2 threads each; what they print is in train.log of their folders"
    )
    assert [line for line in lines if "training" in line] == [f"S{n}, seed 0: training" for n in range(4)]
    assert lines.count("S3, seed 0: AP 12.3  AP50 45.6 in 7 s") == 1
    assert "S0, seed 0: 25%, S1, seed 0: 25%" in lines
    times = {
        (what, one.system): float((one.folder / what).read_text())
        for one in runs
        for what in ("begun", "ended")
    }
    # The first one waits for the third: that has begun when the second ended, and the last one not before it.
    assert times["ended", "S1"] < times["begun", "S2"] < times["ended", "S2"] < times["begun", "S3"]
    for one in runs:
        log = (one.folder / "train.log").read_text()
        assert log.startswith(f"{one.folder.name}: 2 2 ")
        assert float(log.split()[-1]) > time.monotonic()


@needs_fork
def test_an_error_reaches_the_caller_and_the_others_save(
    config: MakeConfig, tmp_path: Path, forked: Callable[..., None]
) -> None:
    def train(config: Config, folder: Path, **_: Any) -> None:
        if folder.name == "s1":
            wait_for(lambda: (folder.parent / "s0" / "pid").exists())
            raise DatasetError("a.json: expected [bold]boxes[/bold], got none")
        until_a_signal(folder)

    forked(train)
    runs = runs_of(config(), tmp_path, 3)
    with pytest.raises(DatasetError, match=r"^a\.json: expected \[bold\]boxes\[/bold\], got none$") as error:
        parallel.train_in_processes(runs, 2, None, Console())
    assert "in train\n" in str(error.value.__cause__)
    assert (runs[0].folder / "saved").exists()
    assert not runs[2].folder.exists()
    assert "expected [bold]boxes" in (runs[1].folder / "train.log").read_text()


@needs_fork
def test_an_error_that_does_not_pickle_and_a_killed_process(
    config: MakeConfig, tmp_path: Path, forked: Callable[..., None]
) -> None:
    def train(config: Config, folder: Path, **_: Any) -> None:
        class OddError(Exception):
            pass

        if folder.parents[1].name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OddError("of a test")

    forked(train)
    terminal = Console(force_terminal=True, file=io.StringIO())
    with pytest.raises(RuntimeError, match=r"^OddError: of a test$"):
        parallel.train_in_processes(runs_of(config(), tmp_path / "odd", 2), 2, None, terminal)
    with pytest.raises(TrainingError, match=r"S\d, seed 0 to end its run, got one ended by SIGKILL"):
        parallel.train_in_processes(runs_of(config(), tmp_path / "killed", 2), 2, None, Console())


@needs_fork
def test_an_error_is_told_where_nothing_can_be_printed(
    config: MakeConfig, tmp_path: Path, forked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Config, folder: Path, **_: Any) -> None:
        class Full:
            def write(self, text: str) -> None:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(sys, "stdout", Full())
        raise DatasetError("a.json: expected room")

    forked(train)
    with pytest.raises(DatasetError, match=r"^a\.json: expected room$"):
        parallel.train_in_processes(runs_of(config(), tmp_path, 2), 2, None, Console())


def test_the_share_of_its_steps() -> None:
    ours, theirs = multiprocessing.Pipe()
    tell = worker.Tell(theirs)
    trainer = SimpleNamespace(callbacks=[tell, Limits(8, None, Timer())], global_step=2)
    tell.on_train_batch_end(trainer)  # type: ignore[arg-type]
    trainer.global_step = 3
    tell.on_train_batch_end(trainer)  # type: ignore[arg-type]
    assert worker.read(ours.recv_bytes()) == 0.25
    assert not ours.poll()  # right after the first one
    ours.close()
    tell._next = 0.0
    tell.on_train_batch_end(trainer)  # type: ignore[arg-type]


def test_a_signal_in_turn_says_how_to_continue(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the option of `solo-attn train`."""

    def train(*_: Any, **__: Any) -> None:
        raise SignalledError(
            "train: ended by SIGINT at step 3; it goes on from x with --resume", signal.SIGINT
        )

    monkeypatch.setattr(sys.modules["solo_attn.training.runs"], "train", train)
    with pytest.raises(
        SignalledError, match=r"^compare: ended by SIGINT; the same command continues$"
    ) as end:
        compare(config(), [0], tmp_path, jobs=1)
    assert end.value.signum == signal.SIGINT


def test_it_waits_for_a_process_that_still_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [True, True, False]

    @contextlib.contextmanager
    def lock(folder: Path) -> Iterator[None]:
        if busy.pop(0):
            raise UsageError("used by one run at a time")
        yield

    monkeypatch.setattr(worker, "alone_in", lock)
    monkeypatch.setattr(worker, "_RETRY", 0.01)
    worker._wait_for_lock(tmp_path)
    assert busy == []


@needs_fork
@pytest.mark.parametrize("everywhere", [False, True], ids=["parent", "parent and children"])
def test_a_signal_ends_all_with_a_checkpoint(
    config: MakeConfig, tmp_path: Path, forked: Callable[..., None], everywhere: bool
) -> None:
    """Ctrl-C and schedulers also signal the children: what the parent asks for is no second signal then."""
    forked(lambda config, folder, **_: until_a_signal(folder))
    runs = runs_of(config(), tmp_path, 3)

    def send() -> None:
        wait_for(lambda: len([*tmp_path.glob("runs/*/pid")]) == 2)
        children = [int(file.read_text()) for file in tmp_path.glob("runs/*/pid")]
        for pid in (*(children if everywhere else ()), os.getpid()):
            os.kill(pid, signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SignalledError, match=r"^(compare|train): ended") as end:
        parallel.train_in_processes(runs, 2, None, Console())
    sender.join()
    assert end.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [(one.folder / "saved").exists() for one in runs] == [True, True, False]


@needs_fork
def test_the_time_is_over(config: MakeConfig, tmp_path: Path, forked: Callable[..., None]) -> None:
    """Of each by itself: the others are not asked to end."""

    def train(config: Config, folder: Path, **_: Any) -> None:
        if folder.name == "s1":
            wait_for(lambda: (folder.parent / "s0" / "begun").exists())
            raise UnfinishedError("train: the time was over")
        (folder / "begun").touch()
        time.sleep(0.5)
        finish(folder)

    forked(train)
    runs = runs_of(config(), tmp_path, 3)
    with pytest.raises(UnfinishedError, match=r"^train: the time was over$"):
        parallel.train_in_processes(runs, 2, None, Console())
    assert [(one.folder / "result.json").exists() for one in runs] == [True, False, False]
    begun = tmp_path / "late"
    with pytest.raises(UnfinishedError, match="not begun"):
        parallel.train_in_processes(runs_of(config(), begun, 3), 2, time.monotonic(), Console())
    assert [path.name for path in (begun / "runs").iterdir()] == ["s0"]


def test_the_number_of_jobs(config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for jobs in (0, -1, 1.5, True, "2"):
        with pytest.raises(
            ConfigError, match=r"^compare: expected jobs to be an integer of at least 1, got "
        ):
            compare(config(), [0], tmp_path, jobs=jobs)  # type: ignore[arg-type]
    given: list[object] = []

    def note(*_: Any, jobs: int, **__: Any) -> None:
        given.append(jobs)
        raise UsageError("enough")

    config().save(tmp_path / "c.yaml")
    monkeypatch.setattr("solo_attn.training.compare", note)
    assert run("compare", tmp_path / "c.yaml")[0] == 2
    assert run("compare", tmp_path / "c.yaml", "--jobs", 3)[0] == 2
    assert given == [1, 3]
    assert run("compare", tmp_path / "c.yaml", "--jobs", 0)[0] == 2
    monkeypatch.setattr(sys.modules["solo_attn.training.demo"], "compare", note)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    scenes = {"out_dir": tmp_path / "demo", "train_images": 1, "val_images": 1, "size": (64, 96)}
    for arguments, accelerator in (({}, "cpu"), ({"jobs": 2}, "cpu"), ({}, "cuda"), ({"jobs": 2}, "cuda")):
        with pytest.raises(UsageError, match="enough"):
            demo(**scenes, **arguments, overrides=[f"train.accelerator={accelerator}"])  # type: ignore[arg-type]
    assert given[2:] == [3, 2, 1, 2]


@pytest.mark.slow
def test_the_same_results(config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In spawned processes, as users have them, and with their parent killed in between."""
    settings = config(batch_size=1, checkpoint_steps=1)
    settings.save(tmp_path / "c.yaml")
    (tmp_path / "two.yaml").write_text("with: {}\nwithout: {model: {attention: null}}\n")
    arguments = ["--systems", str(tmp_path / "two.yaml"), "--seeds", "1", "--jobs", "2"]
    out = tmp_path / "out"
    words = [sys.executable, "-m", "solo_attn", "compare", str(tmp_path / "c.yaml"), *arguments]
    with subprocess.Popen([*words, "--out", str(out)], env={**os.environ, "OMP_NUM_THREADS": "2"}) as parent:
        wait_for(lambda: len([*out.glob("runs/*/last.ckpt")]) == 2)
        parent.kill()
    folders = [out / "runs" / "with-seed0", out / "runs" / "without-seed0"]

    for folder in folders:
        wait_for(lambda log=folder / "train.log": "ended by SIGTERM" in log.read_text())  # type: ignore[misc]
        with alone_in(folder):  # it is free
            assert not (folder / "result.json").exists()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        systems: dict[str, Any] = {"with": {}, "without": {"model": {"attention": None}}}
        again = compare(settings, [0], out, systems, jobs=2)
        whole = compare(settings, [0], tmp_path / "whole", systems)
    finally:
        torch.set_num_threads(threads)
    assert again.rows == whole.rows
    assert (out / "tables.md").read_text() == (tmp_path / "whole" / "tables.md").read_text()
    for folder in folders:
        assert json.loads((folder / "result.json").read_text())["environment"]["threads"] == 1
        assert "continuing from" in (folder / "train.log").read_text()
        a, b = (load_model(path / "last.ckpt")[0] for path in (folder, tmp_path / "whole/runs" / folder.name))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    capsys.readouterr()
    assert compare(settings, [0], out, systems, jobs=2) == again
    assert capsys.readouterr().out.count("done before") == 2
