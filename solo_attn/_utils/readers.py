"""Read text and JSON with a size limit; every failure is one exception with a message of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .limits import PREFIX, limits
from .text import printable


def read_text(path: str | Path, error: type[ValueError]) -> str:
    """A file's text, UTF-8 with or without a byte order mark.

    Args:
        path: of the file.
        error: what is raised.

    Raises:
        ValueError: it is not there, cannot be read, is larger than ``solo_attn.limits.json_bytes`` or is no
            text; the message begins with ``path``.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > limits.json_bytes:
            raise error(
                f"{path}: expected at most {limits.json_bytes} bytes ({PREFIX}JSON_BYTES), got {size}"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, MemoryError) as caught:
        raise error(f"{path}: expected a readable file: {one_line(caught)}") from caught


def read_json(path: str | Path, error: type[ValueError]) -> Any:
    """A file's JSON; see `read_text`.

    Raises:
        ValueError: as `read_text`, or it is not JSON.
    """
    text = read_text(path, error)
    if not text.strip():
        raise error(f"{path}: expected JSON, got an empty file")
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as caught:
        raise error(f"{path}: expected JSON: {one_line(caught)}") from caught


def one_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none, like MemoryError."""
    lines = (line.strip() for line in str(error).splitlines())
    return printable(next((line for line in lines if line), type(error).__name__)[:300])
