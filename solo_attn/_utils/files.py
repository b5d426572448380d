"""Write files completely or not at all, and lock folders."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from .errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_LEFTOVER = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp(\.\w+)?")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_held: set[Path] = set()  # by this process, which the system's lock would admit twice


def check_output(path: Path, command: str, argument: str, *, folder: bool = False) -> None:
    """Refuse where nothing can be written, before the work whose result it is to receive.

    Args:
        path: a file that is to be made or replaced, in a folder that may have to be made too.
        command: whose argument it is; both are named by the message.
        argument: such as "--out".
        folder: ``path`` is to be a folder instead.

    Raises:
        UsageError: a folder where a file is expected or the reverse, below a file, or no permission.
    """
    kind, other = ("folder", "file") if folder else ("file", "folder")
    # Unlike a Path's, these are False too where a folder may not even be searched.
    if os.path.lexists(path) and not (os.path.isdir(path) if folder else os.path.isfile(path)):
        got = other if (os.path.isfile(path) if folder else os.path.isdir(path)) else "special file or link"
        raise UsageError(f"{command}: expected {argument} to be a {kind}, got the {got} {path}")
    there = path if folder else path.parent
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not os.path.isdir(there):
        reason = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"there is no permission to write in {there}"
    else:
        return
    raise UsageError(
        f"{command}: expected {argument} to be a {kind} that can be written, got {path}, but {reason}"
    )


@contextmanager
def replacing(path: str | Path, function: str | None = None, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and move it to ``path`` only after success.

    Each call has its own temporary name: if several write the same file at once, the last one to finish wins.

    Args:
        path: of the file.
        function: whose argument ``path`` is; the message of an error names it.
        durable: wait for the disk, so that the old or the new file is whole after a power cut too.

    Raises:
        OSError: nothing can be written there; the message names ``path``.
    """
    path = Path(path)
    # The process id, to recognise what a killed process left, and a token, since process ids repeat in other
    # containers and for threads. The suffix is kept: matplotlib reads the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            _to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _to_disk(path.parent)  # the new name is stored in the folder
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            reason += "; free some space and run the same once more"
        if function is not None:
            message = f"{function}: expected path to be a file that can be written, got '{path}' "
            message += f"({reason})"
            raise OSError(error.errno, message) from error
        # The temporary name means nothing to the user, and a failed write names no file at all.
        unknown = error.filename in (None, str(temporary), temporary) and error.filename2 is None
        if error.errno is not None and unknown:
            raise OSError(error.errno, reason, str(path)) from error
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


def write_lists(path: str | Path, lists: Mapping[str, Iterable[Any]] | Iterable[Any], function: str) -> None:
    """Write a list as JSON, or an object of named ones, with one entry in memory at a time.

    Args:
        path: of the file, which is either left as it was or complete.
        lists: the list, or name -> list.
        function: see `replacing`.

    Raises:
        OSError: ``path`` cannot be written.
    """
    named = lists if isinstance(lists, Mapping) else {"": lists}
    with replacing(path, function) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, (name, entries) in enumerate(named.items()):
            if isinstance(lists, Mapping):
                file.write(("{" if number == 0 else ", ") + f"{json.dumps(name)}: ")
            file.write("[")
            for place, entry in enumerate(entries):
                file.write((", " if place else "") + json.dumps(entry))
            file.write("]")
        file.write("}" if isinstance(lists, Mapping) else "")


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Lock a folder, created if it does not exist, and remove what killed processes left in it.

    A folder that was created here and is still empty is removed afterwards.

    The lock is the operating system's, on the file ``.lock``: it is released when the process ends for any
    reason. Without such locks (Windows, some network file systems) only a second lock of this process is
    refused.

    Raises:
        UsageError: another process, or another call of this one, holds it.
    """
    folder = Path(folder)
    found = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    key, busy = (
        folder.resolve(),
        f"expected {folder} to be used by one run at a time, got another in it",
    )
    if key in _held:  # opening and closing the file again would release the lock
        raise UsageError(busy)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _locked(descriptor):
            raise UsageError(busy)
        _held.add(key)
        try:
            remove_leftovers(folder)
            yield
        finally:
            _held.discard(key)
            if not found and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        # Not flock, whose lock the processes that load images inherit and keep for seconds after a kill.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # else a file system without locks
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `replacing` that killed processes left; the caller must hold the lock."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
