"""One way to write a file, for everybody: it is there whole, or as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and move it there only when all went well.

    Each call has a name of its own: of several that write the same file at once, the last to end has it.

    Raises:
        OSError: nothing can be written there; the message names ``path``.
    """
    path = Path(path)
    # The process, for whoever finds what a killed one left, and a token, since process ids repeat in other
    # containers and for threads. The suffix stays: matplotlib reads the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary) and error.filename2 is None:
            error.filename = str(path)  # nobody knows the other one
        raise
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
