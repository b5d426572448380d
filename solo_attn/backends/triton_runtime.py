"""Whether Triton can run here, asked without importing it where the answer is known before."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

_PACKAGE = __name__.partition(".")[0]
NAMESPACE = f"{_PACKAGE}_triton"
LEAST_CAPABILITY = (8, 0)  # bfloat16 and tf32 on the tensor cores, asynchronous copies


def _find() -> tuple[str | None, frozenset[str]]:
    """Why nothing runs, and the ops that there are kernels for."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed", frozenset()
    kernels = importlib.util.find_spec(f"{_PACKAGE}.kernels")
    if kernels is None or not kernels.submodule_search_locations:
        return "its kernels are not installed: a source tree without `make setup`", frozenset()
    folder = Path(next(iter(kernels.submodule_search_locations)))
    return None, frozenset(path.stem for path in folder.glob("[!_]*.py"))


# Read once, at import: what runs must not change between two calls of a compiled function. Triton reads its
# variable when a kernel is defined, with the same words for yes.
MISSING, KERNELS = _find()
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y", "t")

# Their dot products of bfloat16 come out wrong in Triton's interpreter, which holds it as 16-bit integers.
DOT_PRODUCTS = frozenset({"grid_attention", "attention_residual"})


def refuses(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why Triton cannot run ``op`` on tensors like these, or None where it can."""
    if MISSING is not None:
        return MISSING
    if op not in KERNELS:
        return f"{op} has no Triton kernel in this version"
    if dtype == torch.float64:
        return "its sums are float32, too coarse for torch.float64"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it has no kernels for {dtype}"
    if INTERPRETED:
        if device_type != "cpu":
            return f"TRITON_INTERPRET is set, and its interpreter needs CPU tensors, got {device_type}"
        if dtype == torch.bfloat16 and op in DOT_PRODUCTS:
            return "dot products of torch.bfloat16 are wrong in Triton's interpreter"
        return None
    if device_type != "cuda":
        return f"it needs CUDA tensors, got {device_type} (or TRITON_INTERPRET=1 from the start, to test it)"
    return _device_refuses()


# Triton raises "0 active drivers" where there is none, so it is asked first.
def _device_refuses() -> str | None:
    if torch.version.hip is not None:
        return "it has been compiled for NVIDIA's GPUs only"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    from triton.backends import backends

    if "nvidia" not in backends or not backends["nvidia"].driver.is_active():
        return "Triton has no active driver for NVIDIA's GPUs"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < LEAST_CAPABILITY:
        return f"it needs compute capability {'.'.join(map(str, LEAST_CAPABILITY))}, got {major}.{minor}"
    return None


# torch.compile takes what it says as a constant instead of tracing into drivers.
_device_refuses._dynamo_marked_constant = True  # type: ignore[attr-defined]
