"""Runs at the same time, each in a process of its own with its share of the threads.

A second thread saves a small training little time, while two processes with a thread each do nearly twice the
work. They are spawned, not forked, since PyTorch's threads do not live on in a fork. A pipe joins each with
its parent: orders to end go down, the share of its steps and its end come up (worker.py). The pipe is closed
where the parent has died, so that no process goes on without it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from .._utils.signals import ENDING, Noted, SignalledError, name_of
from .._utils.text import quantity
from .callbacks import UnfinishedError
from .module import TrainingError
from .worker import END, GRACE, LOG, Outcome, ended_by, read, work

if TYPE_CHECKING:
    from .runs import Run

_LOOK = 0.5  # seconds between two looks at signals and at processes whose own children keep pipes open
_LINES = 30.0  # seconds between two lines of progress where there is no terminal


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

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        f"{quantity(len(runs), 'run')}, {jobs} at a time with {quantity(threads, 'thread')} each; what they "
        f"print is in {LOG} of their folders"
    )
    waiting, working = deque(runs), list[_Process]()
    failed: BaseException | None = None
    begun = asked = False
    noted, shown = Noted(), _Shown(console)
    noted.listen()
    try:
        shown.start()
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
                failed = ended_by(noted.signum)
                say(f"ending {quantity(len(working), 'run')} with a checkpoint; once more ends at once")
            if failed is not None and not isinstance(failed, UnfinishedError) and not asked:
                asked = True
                for one in working:
                    one.ask_to_end()
            if not working:
                break
            ended = _ended(working)
            shown.update(working)
            for one in ended:
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
            shown.stop()
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
        self.share = 0.0
        self._answer: Outcome | None = None
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        # No daemon: those may not start the processes that load images.
        self._process = spawn.Process(
            target=work, args=(run.config, run.folder, deadline, threads, theirs), daemon=False
        )
        with theirs, _threads_of_libraries(threads), _signals_held():
            self._process.start()

    def waits_for(self) -> list[Connection | int]:
        """What is ready when there is something to look at."""
        return [self._process.sentinel, *([self._pipe] if self._answer is None else [])]

    def ended(self) -> bool:
        """Whether it has; also reads what it has sent."""
        gone = self._process.exitcode is not None
        with contextlib.suppress(EOFError, OSError):
            while self._answer is None and self._pipe.poll():
                sent = read(self._pipe.recv_bytes())
                if isinstance(sent, float):
                    self.share = sent
                else:
                    self._answer = sent
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
        else:  # `work` has not begun
            how = f'of status {status}; a program calls compare below if __name__ == "__main__"'
        return TrainingError(
            f"compare: expected the process of {self.run.name} to end its run, got one {how}; the same call "
            f"continues"
        )

    def ask_to_end(self) -> None:
        """Ask it to save and end, the second time to end at once."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(END)

    def wait(self) -> None:
        """Wait for its end, for a while."""
        self._process.join(GRACE)

    def kill(self) -> None:
        """End it if it has not ended."""
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._pipe.close()


class _Shown:
    """How far runs are: bars on a terminal, which go in the end, and elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._next = time.monotonic() + _LINES

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def update(self, working: Sequence[_Process]) -> None:
        """Show these and no others."""
        shares = {one.run.name: one.share for one in working}
        for name in self._tasks.keys() - shares.keys():
            self._bars.remove_task(self._tasks.pop(name))
        for name, share in shares.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(escape(name), total=1.0)
            self._bars.update(self._tasks[name], completed=share)
        now = time.monotonic()
        if not self._console.is_terminal and now >= self._next:
            self._next = now + _LINES
            line = ", ".join(f"{name}: {share:.0%}" for name, share in shares.items())
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


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
