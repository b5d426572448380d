"""Limiting the memory of a measurement, and freeing what is no longer needed."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import torch

RESERVE = 1 << 30  # bytes of memory left to the rest of the machine


def keep_to_memory() -> int | None:
    """From here on, allocations beyond the available memory fail, where Linux would kill the process.

    It is the whole machine's memory that is asked for, not a container's. Allocations fail as errors; a new
    thread may fail in ways of its own.

    Returns:
        Bytes of data that this process may have; None on other systems, which have no such limit.

    Raises:
        MemoryError: less is available than twice `RESERVE`.
    """
    if sys.platform != "linux":
        return None
    import resource

    found = {
        file: dict(re.findall(r"(\w+):\s+(\d+) kB", Path(file).read_text(encoding="utf-8")))
        for file in ("/proc/meminfo", "/proc/self/status")
    }
    spare = int(found["/proc/meminfo"]["MemAvailable"]) << 10
    if spare < 2 * RESERVE:
        raise MemoryError(f"expected {2 * RESERVE:,} bytes of available memory at least, got {spare:,}")
    most = (int(found["/proc/self/status"]["VmData"]) << 10) + spare - RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = min([most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    return most


def free(device: str) -> None:
    """Free memory that is no longer needed."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
