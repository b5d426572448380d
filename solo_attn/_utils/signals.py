"""Signals that end a process: as an exception at once, or recorded until the process can stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .errors import SoloAttnError

ENDING = (signal.SIGINT, signal.SIGTERM)
_SAME = 0.2  # seconds: signals that come while Python is in one call of C are handled in a row after it


class SignalledError(SoloAttnError, RuntimeError):
    """A signal ended the work; finished parts are kept, and the message says how to continue.

    Attributes:
        signum: the signal; a command that it ends has the exit status 128 + signum.
    """

    signum: int

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum

    def __reduce__(self) -> tuple[type[SignalledError], tuple[str, int]]:
        """For `pickle`: both arguments."""
        return type(self), (str(self), self.signum)


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise as SIGINT does, so that what cleans up after Ctrl-C also does so after a scheduler.

    Nothing is changed outside the main thread, where Python has no handlers, and if another handler is set.
    """
    if not _may_handle() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(signum: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """Which signal it was."""
    return interrupt.args[0] if interrupt.args and interrupt.args[0] in ENDING else signal.SIGINT


class Noted:
    """Records the first ending signal; a second one, unless right after it, raises `KeyboardInterrupt`.

    Attributes:
        signum: the recorded signal, or None.
    """

    signum: int | None

    def __init__(self) -> None:
        self.signum = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Set the handlers; also called again after others have set theirs."""
        if not _may_handle():
            return
        for one in ENDING:
            before = signal.signal(one, self._note)
            if before != self._note:
                self._before.setdefault(one, before)

    def stop(self) -> None:
        """Restore the previous handlers."""
        for one, before in self._before.items():
            signal.signal(one, before)
        self._before.clear()

    def _note(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._when = signum, now
        elif now - self._when > _SAME:
            raise KeyboardInterrupt(signum)


def signal_pending() -> bool:
    """Whether a `Noted` that listens has recorded a signal; every thread may ask."""
    listener = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return isinstance(listener, Noted) and listener.signum is not None


def name_of(signum: int) -> str:
    """ "SIGTERM"."""
    return signal.Signals(signum).name


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()
