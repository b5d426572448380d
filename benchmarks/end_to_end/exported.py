"""The exported program beside its own ONNX file, in onnxruntime and OpenVINO, on a CPU.

``python -m benchmarks.end_to_end.exported`` stores benchmarks/results/cpu/export.json. The contenders take
turns, and each gives what the first one gives before it is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report.stored import folder_of
from solo_attn._utils.environment import environment
from solo_attn.bench import Race
from solo_attn.export import FixedProgram, Found, export_model
from solo_attn.models import ModelInfo, build_solo, save_model

SETTINGS: dict[str, Any] = {"backbone": "resnet18", "head_channels": 64, "num_convs": 2, "fpn_channels": 64}
SIZE = (256, 384)


def contenders(folder: Path, size: tuple[int, int], **settings: Any) -> dict[str, Callable[[], Found]]:
    """PyTorch, onnxruntime and OpenVINO on one image, with one thread each."""
    import onnxruntime
    import openvino

    torch.manual_seed(0)
    model = build_solo(5, **{**SETTINGS, **settings}).eval()
    for name, parameter in model.head.named_parameters():  # so that there are instances to compare
        if "output" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    torch.nn.init.constant_(model.head.category_output.bias, -1.0)
    save_model(model, ModelInfo(model.config, list("abcde"), [1, 2, 3, 4, 5], {}), folder / "model.ckpt")
    file = export_model(folder / "model.ckpt", folder / "model.onnx")
    image = torch.rand(1, 3, *size)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", threads)
    program, array = FixedProgram(model, 100), image.numpy()

    def found(arrays: Any) -> Found:
        return Found(*(torch.from_numpy(x) for x in arrays))

    return {
        "torch": lambda: Found(*program(image)),
        "onnxruntime": lambda: found(session.run(None, {"images": array})),
        "openvino": lambda: found(compiled(array)[name] for name in Found._fields),
    }


def check(expected: Found, got: Found) -> dict[str, float]:
    """How far two results differ; refuses to compare times of what is not the same."""

    def largest(x: Tensor, y: Tensor) -> float:
        return float((x - y).abs().max())

    if not int(expected.count.min()):
        raise ValueError("exported: expected instances to compare, got none")
    difference = {"scores": largest(expected.scores, got.scores), "masks": largest(expected.masks, got.masks)}
    if max(difference.values()) > 1e-3 or not expected.labels.equal(got.labels):
        raise ValueError(f"exported: expected the results of PyTorch, got others: {difference}")
    return difference


def measure(rounds: int, size: tuple[int, int] = SIZE, **settings: Any) -> dict[str, Any]:
    """Medians of ``rounds`` turns, and what they are of."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(Path(folder), size, **settings)
        first = runs["torch"]()
        differences = {name: check(first, run()) for name, run in runs.items()}
        race = Race(runs)
        for _ in range(rounds):
            race.round()
    return {
        "size": size,
        "settings": {**SETTINGS, **settings},
        "instances": int(first.count),
        "times": {name: times.as_dict() for name, times in race.times().items()},
        "differences": differences,
        "environment": environment("cpu"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    stored = folder_of("cpu") / "export.json"
    stored.write_text(json.dumps(measure(parser.parse_args().rounds), indent=1) + "\n", encoding="utf-8")
    print(stored)
