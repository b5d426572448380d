"""The library's own exceptions: what is the user's to mend has one base class and says how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# What the extras install, by the names that are imported; "train" has "cli" in it.
EXTRA_CLI = frozenset({"rich", "typer"})
EXTRA_TRAIN = frozenset(
    {"PIL", "lightning", "matplotlib", "pycocotools", "safetensors", "tensorboard", "yaml"}
)


class SoloAttnError(Exception):
    """What a caller can mend: its message says what was expected and what came.

    The subclasses are a ``ValueError``, ``RuntimeError`` or ``ImportError`` as well. The command line shows
    them as one line, and a traceback of all else.
    """


class UsageError(SoloAttnError, ValueError):
    """Arguments of a command that cannot be used."""


class MissingExtraError(SoloAttnError, ImportError):
    """A package of the extra "train" or "cli" is not installed."""


@contextmanager
def extra_train(who: str) -> Iterator[None]:
    """Say how to install the extra "train", or "cli", where something in it is imported and not there.

    Args:
        who: what needs it; the message begins with it.

    Raises:
        MissingExtraError: a package of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_TRAIN | EXTRA_CLI:
            raise
        extra = "cli" if package in EXTRA_CLI else "train"
        message = f'{who}: expected {package} to be installed; run: pip install "solo-attn[{extra}]"'
        raise MissingExtraError(message, name=error.name) from error
