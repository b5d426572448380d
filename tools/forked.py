"""Functions in forked processes, which begin with all modules imported, and may crash, be killed or hang.

Whoever forks must not have computed with PyTorch before: its threads do not live on in a child.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from solo_attn.cli import app

CRASHED = 99  # the exit status of a child whose function raised; the traceback is in its output


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: exit status, or -n after signal n, as in `subprocess`.
        seconds: CPU time.
        memory: most of the machine's memory that it held at a time, in bytes.
        output: of stdout and stderr.
    """

    status: int
    seconds: float
    memory: int
    output: str


class Child:
    """A forked process that runs ``function`` and exits with the status it returns.

    Args:
        function: without arguments.
        kill: a signal, and after how many seconds of the child's own CPU time it comes.
        seconds: CPU time after which the child is a hang and ended by SIGXCPU; None for no limit.
        memory: bytes that it may allocate beyond those it begins with; None for no limit.
    """

    def __init__(
        self,
        function: Callable[[], int],
        *,
        kill: tuple[signal.Signals, float] | None = None,
        seconds: int | None = None,
        memory: int | None = None,
    ) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `wait` closes it
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(function, kill, seconds, memory)

    def _be(
        self,
        function: Callable[[], int],
        kill: tuple[signal.Signals, float] | None,
        seconds: int | None,
        memory: int | None,
    ) -> None:
        status = CRASHED
        try:
            for stream in (1, 2):
                os.dup2(self._output.fileno(), stream)
            os.fsync = lambda file: None  # waiting for the disk is most of the time, and the power stays on
            if seconds is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            if memory is not None:
                limit = _data() + memory
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            if kill is not None:
                _arm(*kill)
            status = function()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> Ended:
        """Its end."""
        _, status, usage = os.wait4(self.pid, 0)
        self._output.seek(0)
        with self._output:
            output = self._output.read().decode(errors="replace")
        unit = 1 if sys.platform == "darwin" else 1024
        spent = usage.ru_utime + usage.ru_stime
        return Ended(os.waitstatus_to_exitcode(status), spent, usage.ru_maxrss * unit, output)


def command(arguments: list[str]) -> int:
    """``solo-attn`` with these arguments, in this process; its exit status."""
    try:
        app(arguments, prog_name="solo-attn")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _arm(signum: signal.Signals, seconds: float) -> None:
    """Send a signal to this process after so much CPU time: the same moments on a machine however busy."""
    if signum != signal.SIGKILL:
        signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signum))
    # Else SIGPROF itself ends the process, at once and in the midst of any C code, as SIGKILL does.
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-3))


def _data() -> int:
    """Bytes of this process that RLIMIT_DATA counts."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
