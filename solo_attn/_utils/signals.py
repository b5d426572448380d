"""Signals that end a process: as an exception at once, or noted until a good moment comes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .errors import SoloAttnError

ENDING = (signal.SIGINT, signal.SIGTERM)


class SignalledError(SoloAttnError, RuntimeError):
    """A signal ended the work; what was finished is kept, and the message says how to go on.

    Attributes:
        signum: the signal; a command that it ends has the exit status 128 + signum.
    """

    signum: int

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Have SIGTERM raise as SIGINT does, so that what cleans up behind Ctrl-C does so behind a scheduler too.

    In another thread than the main one, where Python has no handlers, and where somebody else has set one,
    nothing is changed.
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
    """Notes the first ending signal; the second one raises `KeyboardInterrupt`.

    Attributes:
        signum: of what came, or None.
    """

    signum: int | None

    def __init__(self) -> None:
        self.signum = None
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on; once more where somebody else has set handlers meanwhile."""
        if not _may_handle():
            return
        for one in ENDING:
            before = signal.signal(one, self._note)
            if before != self._note:
                self._before.setdefault(one, before)

    def stop(self) -> None:
        """Put back the handlers that were there before."""
        for one, before in self._before.items():
            signal.signal(one, before)
        self._before.clear()

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt(signum)
        self.signum = signum


def name_of(signum: int) -> str:
    """ "SIGTERM"."""
    return signal.Signals(signum).name


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()
