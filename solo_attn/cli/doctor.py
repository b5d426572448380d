"""``solo-attn doctor``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console

from .app import command

_PACKAGES = (
    "solo-attn",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "lightning",
    "tensorboard",
    "pycocotools",
    "safetensors",
    "matplotlib",
)


@command
def doctor() -> None:
    """Say what this machine can run: versions, devices, and each op's backends.

    Where a backend cannot run, the reason stands beside it. Paste what it prints into a bug report.
    """
    import torch

    from ..backends import explain

    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"python {platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        try:
            console.print(f"{name} {version(name)}")
        except PackageNotFoundError:
            console.print(f"{name} is not installed")
    devices = ["cpu"]
    console.print(f"cpu: {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        devices.append("cuda")
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            console.print(
                f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, "
                f"compute capability {facts.major}.{facts.minor}"
            )
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        console.print(f"cuda: none found (this torch is {built})")
    for device in devices:
        console.print(str(explain(device=device)))
