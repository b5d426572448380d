"""Where a measurement is kept."""

from __future__ import annotations

import re
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def folder_of(device: str) -> Path:
    """benchmarks/results/cpu, or one named after the GPU."""
    if device == "cpu":
        return RESULTS / "cpu"
    return RESULTS / re.sub(r"\W+", "_", torch.cuda.get_device_name(device)).strip("_").lower()
