"""Keeps to itself what Lightning says for its own developers and for people with another machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Each is a choice made here on purpose, so a user can do nothing about it.
_CHOSEN = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The dirpath has changed from.*",
    r".*your dataloader is not resumable.*",
    r".*in eval mode at the start of training.*",
    r".*GPU available but not used.*",
    r".*No device id is provided via `init_process_group`.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*is deprecated.*LeafSpec.*",
    r".*Experiment logs directory .* exists.*",
    r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\).*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*could not find the monitored key.*",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on choices that this package made."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in _CHOSEN:
            warnings.filterwarnings("ignore", message=pattern)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
