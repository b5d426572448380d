"""Runs at the same time, each in a process of its own with its share of the threads.

A second thread saves a small training little time, while two processes with a thread each do nearly twice the
work. They are spawned, not forked, since PyTorch's threads do not live on in a fork. A pipe joins each with
its parent: orders to end go down, the end of the run comes up, and where the parent has died the pipe is
closed, so that no process goes on without it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from .._utils.console import plain_console
from .._utils.errors import SoloAttnError, UsageError
from .._utils.files import alone_in
from .._utils.signals import ENDING, Noted, SignalledError, as_interrupt, name_of, signal_of, signal_pending
from .._utils.text import quantity
from .callbacks import UnfinishedError
from .config import Config
from .module import TrainingError
from .train import train

if TYPE_CHECKING:
    from .runs import Run

LOG = "train.log"  # of a run folder: what its process printed
_LOOK = 0.5  # seconds between two looks at signals and at processes whose own children keep pipes open
_GRACE = 30.0  # seconds that processes have to end in when this one must


def train_in_processes(runs: Sequence[Run], jobs: int, deadline: float | None, console: Console) -> None:
    """Train runs, several at a time; the next one begins as soon as one ends.

    What a run prints goes to ``train.log`` in its folder. After an error or a signal the other runs end as by
    SIGTERM, with a checkpoint, and are waited for; a second signal ends them at once.

    Args:
        runs: in the order in which they begin.
        jobs: how many at a time.
        deadline: of `time.monotonic`; at least one run makes a step.
        console: where it says which run begins and ends.

    Raises:
        SignalledError: SIGINT or SIGTERM came.
        TrainingError: a process was killed, or crashed.
        UnfinishedError: the deadline came first.
        Exception: the first one of a run, see `train`.
    """
    jobs = min(jobs, len(runs))
    threads = max(1, torch.get_num_threads() // jobs)
    console.print(
        f"{quantity(len(runs), 'run')}, {jobs} at a time with {quantity(threads, 'thread')} each; what they "
        f"print is in {LOG} of their folders",
        highlight=False,
        soft_wrap=True,
    )

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    waiting, working = deque(runs), list[_Process]()
    failed: BaseException | None = None
    begun = asked = False
    noted = Noted()
    noted.listen()
    try:
        while True:
            while failed is None and waiting and len(working) < jobs and noted.signum is None:
                if begun and deadline is not None and time.monotonic() >= deadline:
                    failed = UnfinishedError("compare: not begun")
                    break
                run = waiting.popleft()
                if run.done:  # now: another process may have finished it
                    say(f"{run.name}: done before")
                    continue
                begun = True
                say(f"{run.name}: training")
                working.append(_Process(run, deadline, threads))
            if noted.signum is not None and not asked:
                failed = SignalledError(
                    f"compare: ended by {name_of(noted.signum)}; the same command continues", noted.signum
                )
                say(f"ending {quantity(len(working), 'run')} with a checkpoint; once more ends at once")
            if failed is not None and not isinstance(failed, UnfinishedError) and not asked:
                asked = True
                for one in working:
                    one.ask_to_end()
            if not working:
                break
            for one in _ended(working):
                working.remove(one)
                error = one.error()
                if error is None:
                    say(f"{one.run.name}: {one.run.summary()}")
                elif not asked and (failed is None or isinstance(failed, UnfinishedError)):
                    # Where the time is over the others find it out themselves.
                    failed = error
                    if noted.signum is None and not isinstance(error, (UnfinishedError, SignalledError)):
                        log = one.run.folder / LOG
                        say(f"{one.run.name}: failed{f', see {log}' if log.exists() else ''}")
    finally:
        try:
            for one in working:
                one.ask_to_end()
            for one in working:
                one.wait()
        finally:  # a signal may end the waiting
            noted.stop()
            for one in working:
                one.kill()
    if failed is not None:
        raise failed


class _Process:
    """One that trains a run.

    Args:
        run: what it trains.
        deadline: of `time.monotonic`, whose clock is the system's.
        threads: of PyTorch.
    """

    def __init__(self, run: Run, deadline: float | None, threads: int) -> None:
        self.run = run
        self._answer: tuple[BaseException | None, str] | None = None
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        # No daemon: those may not start the processes that load images.
        self._process = spawn.Process(
            target=_train, args=(run.config, run.folder, deadline, threads, theirs), daemon=False
        )
        with theirs, _threads_of_libraries(threads), _signals_held():
            self._process.start()

    def waits_for(self) -> list[Connection | int]:
        """What is ready when there is something to look at."""
        return [self._process.sentinel, *([self._pipe] if self._answer is None else [])]

    def ended(self) -> bool:
        """Whether it has; also reads its answer."""
        gone = self._process.exitcode is not None
        if self._answer is None:
            with contextlib.suppress(EOFError, OSError):
                if self._pipe.poll():
                    self._answer = _read(self._pipe.recv_bytes())
        return gone

    def error(self) -> BaseException | None:
        """What ended the run, None if it is finished; the process has ended."""
        self._pipe.close()
        if self._answer is not None:
            error, told = self._answer
            if error is not None:
                error.__cause__ = _InProcessError(told)
            return error
        status = self._process.exitcode or 0
        log = self.run.folder / LOG
        if status < 0:
            how = f"ended by {name_of(-status)} (memory?); see {log}"
        elif log.exists():
            how = f"of status {status}; see {log}"
        else:  # `_train` has not begun
            how = f'of status {status}; a program calls compare below if __name__ == "__main__"'
        return TrainingError(
            f"compare: expected the process of {self.run.name} to end its run, got one {how}; the same call "
            f"continues"
        )

    def ask_to_end(self) -> None:
        """Ask it to save and end, the second time to end at once."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(b"end")

    def wait(self) -> None:
        """Wait for its end, for a while."""
        self._process.join(_GRACE)

    def kill(self) -> None:
        """End it if it has not ended."""
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._pipe.close()


class _InProcessError(Exception):
    """The traceback of another process, as the cause of an error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _ended(working: Sequence[_Process]) -> list[_Process]:
    wait([thing for one in working for thing in one.waits_for()], _LOOK)
    return [one for one in working if one.ended()]


@contextlib.contextmanager
def _threads_of_libraries(threads: int) -> Iterator[None]:
    """Libraries read it when they are loaded, which is before anything can be called."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let a process that begins here find signals only when it can act on them: Ctrl-C is for all."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else `start` does it, and lets signals through after it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _train(config: Config, folder: Path, deadline: float | None, threads: int, pipe: Connection) -> None:
    """What a process does."""
    answer: tuple[BaseException | None, str] = None, ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / LOG).open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout = sys.stderr = log
        torch.set_num_threads(threads)
        threading.Thread(target=_obey, args=(pipe,), daemon=True).start()
        with as_interrupt():
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            _wait_for_lock(folder)
            train(config, folder, resume=True, deadline=deadline, console=plain_console())
    except KeyboardInterrupt as interrupt:  # before the training, or behind it
        signum = signal_of(interrupt)
        answer = (
            SignalledError(f"compare: ended by {name_of(signum)}; the same command continues", signum),
            "",
        )
    except BaseException as error:
        answer = error, traceback.format_exc()
    with contextlib.suppress(OSError):  # nobody waits for it
        pipe.send_bytes(_written(*answer))
    ended_by, told = answer
    if ended_by is not None:
        with contextlib.suppress(OSError):  # a full disk, which may be the error itself
            print(ended_by if isinstance(ended_by, SoloAttnError) else told)


def _wait_for_lock(folder: Path) -> None:
    """Until the process of a call that was killed has saved, and has left the folder; `train` says if not."""
    end = time.monotonic() + _GRACE
    while time.monotonic() < end:
        with contextlib.suppress(UsageError), alone_in(folder):
            return
        time.sleep(_LOOK)


def _obey(pipe: Connection) -> None:
    """End this process's run as by SIGTERM when its parent asks for it or is gone.

    Not the first time if a signal has come already: Ctrl-C, or a scheduler, reaches both processes.
    """
    asked = gone = False
    while not gone:
        try:
            pipe.recv_bytes()
        except (EOFError, OSError):
            gone = True
        if (asked and not gone) or not signal_pending():
            os.kill(os.getpid(), signal.SIGTERM)
        asked = True


def _written(error: BaseException | None, told: str) -> bytes:
    """An outcome for `_read`, with the error's words where it cannot be pickled, or not be read again."""
    data = b""
    with contextlib.suppress(Exception):  # an error's own methods may raise anything
        data = pickle.dumps(error)
    return pickle.dumps((data, f"{type(error).__name__}: {error}", str(error), told))


def _read(outcome: bytes) -> tuple[BaseException | None, str]:
    data, words, message, told = pickle.loads(outcome)
    with contextlib.suppress(Exception):
        error = pickle.loads(data)
        if error is None or str(error) == message:
            return error, told
    return RuntimeError(words), told
