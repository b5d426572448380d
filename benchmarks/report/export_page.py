"""The generated part of docs/export.md: one image in three runtimes."""

from __future__ import annotations

from collections.abc import Callable

from . import stored
from .stored import measured_on, table

NAMES = {
    "torch": "PyTorch, the program itself",
    "onnxruntime": "onnxruntime, the ONNX file",
    "openvino": "OpenVINO, the same file",
}


def runtimes() -> str:
    """Medians, and how many times as fast as PyTorch each runtime is."""
    found = stored.kept("export")
    if found is None:
        return "How fast it is has not been measured yet."
    times = found["times"]
    first = times["torch"]["median"]
    rows = [
        [name, f"{1000 * times[key]['median']:,.0f}", f"{first / times[key]['median']:.2f}x"]
        for key, name in NAMES.items()
    ]
    settings, (height, width) = found["settings"], found["size"]
    return (
        f"{table(['one image', 'ms', 'faster than PyTorch'], rows)}\n\n"
        f"Medians of {times['torch']['runs']} runs in turn, float32, {height} x {width} pixels, SOLO with "
        f"attention on {settings['backbone']}, {settings['head_channels']} channels and "
        f"{settings['num_convs']} convolutions in each tower, weights not trained "
        f"{measured_on(found['environment'])}."
    )


BLOCKS: dict[str, Callable[[], str]] = {"export": runtimes}
