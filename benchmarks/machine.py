"""What a measurement ran on, and where it is kept."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from solo_attn.bench import environment

RESULTS = Path(__file__).parent / "results"


def facts(device: str) -> dict[str, Any]:
    """`solo_attn.bench.environment`, and driver, CUDA, Triton; None for what is not there."""
    more: dict[str, str | None] = {"cuda": torch.version.cuda, "triton": None, "driver": None}
    for name in ("triton", "pytorch-triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            more["triton"] = importlib.metadata.version(name)
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        more["driver"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return {**environment(device), **more}


def folder_of(device: str) -> Path:
    """benchmarks/results/cpu, or one named after the GPU."""
    if device == "cpu":
        return RESULTS / "cpu"
    return RESULTS / re.sub(r"\W+", "_", torch.cuda.get_device_name(device)).strip("_").lower()
