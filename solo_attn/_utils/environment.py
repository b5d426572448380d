"""This machine: its devices, and what is stored with each measurement."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .errors import UsageError


def environment(device: str | None = None) -> dict[str, Any]:
    """Versions, device, commit and date, ready for `json`; for a GPU also its driver, CUDA and Triton.

    The commit is that of the git checkout around the package; without one it is SOLO_ATTN_COMMIT's, or None.

    Args:
        device: the device of the measurement; None for the first GPU, or the CPU if there is none.
    """
    gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    return {
        "solo_attn": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if gpu else _cpu(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **(_gpu_software() if gpu else {}),
    }


def first_process() -> bool:
    """Whether this is the first of the processes that train together, on all machines.

    As torchrun, Slurm and Lightning number them: NODE_RANK is the machine's where none of them starts the
    processes.
    """
    ranks = (
        os.environ.get("RANK", "0"),
        os.environ.get("SLURM_PROCID", "0"),
        os.environ.get("NODE_RANK", "0"),
        os.environ.get("LOCAL_RANK", "0"),
    )
    return all(rank == "0" for rank in ranks)


def device_named(name: str) -> str:
    """The device of that name; "auto" is the first accelerator, else the CPU; "auto:2" the third.

    Raises:
        UsageError: there is no such device.
    """
    if name.partition(":")[0] == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type + name.removeprefix("auto")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"expected --device to be cpu or an accelerator of this machine, got {name!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return name


def _gpu_software() -> dict[str, str | None]:
    """Versions that measurements on a GPU depend on; None for those that cannot be found."""
    found: dict[str, str | None] = {"cuda": torch.version.cuda, "triton": None, "driver": None}
    for name in ("triton", "pytorch-triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["triton"] = importlib.metadata.version(name)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        found["driver"] = done.stdout.split()[0]
    return found


def _commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    given = os.environ.get("SOLO_ATTN_COMMIT") or None
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return given
    return found.stdout.strip() or given


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
