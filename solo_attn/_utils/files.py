"""One way to write a file, for everybody: it is there whole, or as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: str | Path, function: str | None = None, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and move it there only when all went well.

    Each call has a name of its own: of several that write the same file at once, the last to end has it.

    Args:
        path: of the file.
        function: whose argument ``path`` is; the message of an error names it.
        durable: wait for the disk, so that the old or the new file is whole after a power cut too.

    Raises:
        OSError: nothing can be written there; the message names ``path``.
    """
    path = Path(path)
    # The process, for whoever finds what a killed one left, and a token, since process ids repeat in other
    # containers and for threads. The suffix stays: matplotlib reads the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            _to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _to_disk(path.parent)  # the new name lives in the folder
    except OSError as error:
        if function is not None:
            reason = error.strerror or str(error)
            message = f"{function}: expected path to be a file that can be written, got '{path}' ({reason})"
            raise OSError(error.errno, message) from error
        if str(error.filename) == str(temporary) and error.filename2 is None:
            error.filename = str(path)  # nobody knows the other one
        raise
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def write_durably(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file, and its folder where there is none, by `replacing` with ``durable``.

    Raises:
        OSError: nothing can be written there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as temporary:
        temporary.write_bytes(data)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
