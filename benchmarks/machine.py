"""Where a measurement is kept, and how much memory it may take."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
RESERVE = 1 << 30  # bytes of memory left to the rest of the machine


def folder_of(device: str) -> Path:
    """benchmarks/results/cpu, or one named after the GPU."""
    if device == "cpu":
        return RESULTS / "cpu"
    return RESULTS / re.sub(r"\W+", "_", torch.cuda.get_device_name(device)).strip("_").lower()


def keep_to_memory() -> None:
    """What needs more memory than is available now fails from here on, where Linux would end the process.

    Other systems have no such limit, and stay as they are.
    """
    if sys.platform != "linux":
        return
    found = {
        file: dict(re.findall(r"(\w+):\s+(\d+) kB", Path(file).read_text(encoding="utf-8")))
        for file in ("/proc/meminfo", "/proc/self/status")
    }
    spare = int(found["/proc/meminfo"]["MemAvailable"]) << 10
    most = (int(found["/proc/self/status"]["VmData"]) << 10) + max(spare - RESERVE, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
