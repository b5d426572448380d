"""``solo-attn doctor``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .._utils.console import plain_console
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
    """Print versions, devices, and which backends can run each op on this machine.

    Each backend that cannot run is printed with the reason. Please include the output in bug reports.
    """
    import torch

    from ..backends import compiled, explain

    console = plain_console(soft_wrap=True)
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
            card = torch.cuda.get_device_properties(index)
            console.print(
                f"cuda:{index}: {card.name}, {card.total_memory / 2**30:.0f} GiB, "
                f"compute capability {card.major}.{card.minor}"
            )
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        console.print(f"cuda: none found (this torch is {built})")
    facts = compiled.CONFIGURATION
    console.print("compiled kernels: " + ", ".join(f"{name} {_flat(value)}" for name, value in facts.items()))
    if facts["build"] != "none" and compiled.problem() is None:
        console.print(f"instruction set of the CPU kernels: {compiled.simd()}")
    for device in devices:
        console.print(str(explain(device=device)))


def _flat(value: object) -> str:
    """A value of the build's configuration on one line, without the punctuation of JSON."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_flat(inner)}" for name, inner in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
