"""What a process of `parallel` does: train one run, obey its parent, tell how far it is and how it ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from .._utils.console import plain_console
from .._utils.errors import SoloAttnError, UsageError
from .._utils.files import alone_in
from .._utils.signals import ENDING, SignalledError, as_interrupt, name_of, signal_of, signal_pending
from .callbacks import Limits
from .config import Config
from .train import train

LOG = "train.log"  # of a run folder: what its process printed
GRACE = 30.0  # seconds that a process has to end in
END = b"end"  # what a parent sends
_RETRY = 0.5  # seconds between two tries to lock a run folder
_TELL = 0.5  # seconds between two shares that are told, at least
Outcome = tuple[BaseException | None, str]
"""What ended a run, None if it is finished, and its traceback."""


def ended_by(signum: int) -> SignalledError:
    """What a comparison says of a signal."""
    return SignalledError(f"compare: ended by {name_of(signum)}; the same command continues", signum)


class Tell(pl.Callback):
    """Sends the share of its steps that a run has made.

    Args:
        pipe: to the parent.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._next = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Now and then."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _TELL
        steps = next(one.steps for one in trainer.callbacks if isinstance(one, Limits))  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # nobody listens
            self.pipe.send_bytes(pickle.dumps(trainer.global_step / max(1, steps)))


def work(config: Config, folder: Path, deadline: float | None, threads: int, pipe: Connection) -> None:
    """Train in this process, which does nothing else.

    Args:
        config: what is trained.
        folder: of the run.
        deadline: of `time.monotonic`.
        threads: of PyTorch.
        pipe: to the parent, from which `END` comes, and to which `read` is to be applied.
    """
    answer: Outcome = None, ""
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
            train(
                config,
                folder,
                resume=True,
                deadline=deadline,
                callbacks=[Tell(pipe)],
                console=plain_console(),
            )
    except KeyboardInterrupt as interrupt:  # before the training, or behind it
        answer = ended_by(signal_of(interrupt)), ""
    except BaseException as error:
        answer = error, traceback.format_exc()
    with contextlib.suppress(OSError):  # nobody waits for it
        pipe.send_bytes(_written(*answer))
    cause, told = answer
    if cause is not None:
        with contextlib.suppress(OSError):  # a full disk, which may be the error itself
            print(cause if isinstance(cause, SoloAttnError) else told)


def _wait_for_lock(folder: Path) -> None:
    """Until the process of a call that was killed has saved, and has left the folder; `train` says if not."""
    end = time.monotonic() + GRACE
    told = False
    while time.monotonic() < end:
        with contextlib.suppress(UsageError), alone_in(folder):
            return
        if not told:
            print(f"waiting for another process to leave {folder}")
            told = True
        time.sleep(_RETRY)


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
    """An outcome for `read`, with the error's words where it cannot be pickled, or not be read again."""
    data = b""
    with contextlib.suppress(Exception):  # an error's own methods may raise anything
        data = pickle.dumps(error)
    return pickle.dumps((data, f"{type(error).__name__}: {error}", str(error), told))


def read(sent: bytes) -> float | Outcome:
    """What a process has sent: the share of its steps, or its outcome."""
    found = pickle.loads(sent)
    if isinstance(found, float):
        return found
    data, words, message, told = found
    with contextlib.suppress(Exception):
        error = pickle.loads(data)
        if error is None or str(error) == message:
            return error, told
    return RuntimeError(words), told
