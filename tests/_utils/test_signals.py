"""Signals that are recorded: the first one, and none of those that come with it."""

from __future__ import annotations

import os
import signal

import pytest

from solo_attn._utils import signals
from solo_attn._utils.signals import ENDING, Noted, signal_pending


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held back here")
def test_signals_that_waited_for_one_call_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches a process, and its parent asks it to end, while it is inside PyTorch."""
    monkeypatch.setattr(signals, "_SAME", 60.0)  # the machine may hold the process between them
    handler = signal.getsignal(signal.SIGINT)
    noted = Noted()
    noted.listen()
    try:
        assert not signal_pending()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        for one in ENDING:
            os.kill(os.getpid(), one)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert noted.signum in ENDING
        assert signal_pending()
        monkeypatch.setattr(signals, "_SAME", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        noted.stop()
    assert signal.getsignal(signal.SIGINT) is handler
