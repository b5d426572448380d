"""The library's own exceptions: errors that the user can correct have one base class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Names of the modules that the extras install; "train" includes "cli".
EXTRA_CLI = frozenset({"rich", "typer"})
EXTRA_EXPORT = frozenset({"onnx", "onnxruntime", "onnxscript"})
EXTRA_TRAIN = frozenset(
    {"PIL", "lightning", "matplotlib", "pycocotools", "safetensors", "tensorboard", "yaml"}
)


class SoloAttnError(Exception):
    """An error that the caller can correct: its message says what was expected and what was given.

    The subclasses are a ``ValueError``, ``RuntimeError`` or ``ImportError`` as well. The command line shows
    these errors as one line, and others with a traceback.
    """


class UsageError(SoloAttnError, ValueError):
    """Invalid arguments of a command."""


class MissingExtraError(SoloAttnError, ImportError):
    """A package of the extra "train", "cli" or "export" is not installed."""


@contextmanager
def extra_train(who: str) -> Iterator[None]:
    """Say how to install the extra if an import in this block fails because one is missing.

    Args:
        who: what needs it; the message begins with it.

    Raises:
        MissingExtraError: a package of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extras = {"cli": EXTRA_CLI, "export": EXTRA_EXPORT, "train": EXTRA_TRAIN}
        extra = next((name for name, packages in extras.items() if package in packages), None)
        if extra is None:
            raise
        message = f'{who}: expected {package} to be installed; run: pip install "solo-attn[{extra}]"'
        raise MissingExtraError(message, name=error.name) from error


@contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """An error of the model on an image, as one line that names the file.

    Raises:
        UsageError: a strip too thin to resize, an image too large for the memory.
    """
    try:
        yield
    except SoloAttnError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file}: not a valid input of the model: {reason}") from error


def of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, is a lack of memory, which may be over at the next attempt."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, MemoryError) or "out of memory" in text or "allocate memory" in text:
            return True
        cause = cause.__cause__
    return False
