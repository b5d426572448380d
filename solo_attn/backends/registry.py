"""Which implementation of an op runs, and why another one cannot.

A backend is a namespace of torch.library ops with the same schemas, fakes and gradients:

=========== ======================== ==================================================
backend     namespace                what it is
=========== ======================== ==================================================
cuda        ``solo_attn``            CUDA C++
cpu         ``solo_attn``            C++, threads and SIMD chosen when it runs
triton      ``solo_attn_triton``     Triton, on NVIDIA's GPUs
reference   ``solo_attn_reference``  plain PyTorch, any device and float dtype
=========== ======================== ==================================================

The namespace ``solo_attn`` is the one that compiled kernels register themselves in, by dispatch key;
its ops fall back to the reference if nothing is compiled, so that they always exist.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .._utils.checks import FLOAT_DTYPES
from . import compiled, triton_runtime
from .order import row_of


@dataclass(frozen=True)
class Backend:
    """One family of implementations.

    Attributes:
        name: what users pass as ``backend=``.
        namespace: the torch.library namespace that holds its ops.
        refuses: ``(op, device_type, dtype) -> reason``, or None if it runs. It depends on these three only,
            so that its result is a constant under ``torch.compile``.
        when_named: a device type on which it runs only if the caller names it.
        forms: what it can take beyond the plain arguments: "factors", to make masks from kernels and features
            without keeping their product (`MaskFactors`), and "levels", to take those of several levels at
            once. On the others the product is made first, and there is one call for each level.
    """

    name: str
    namespace: str
    refuses: Callable[[str, str, torch.dtype], str | None]
    when_named: str | None = None
    forms: tuple[str, ...] = ()


def _cuda_refuses(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it needs CUDA tensors, got {device_type}"
    if dtype not in FLOAT_DTYPES:
        return f"it has no kernels for {dtype}"
    return compiled.refuses("cuda", op) or compiled.cuda_problem()


def _cpu_refuses(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"it needs CPU tensors, got {device_type}"
    if dtype not in FLOAT_DTYPES:
        return f"it has no kernels for {dtype}"
    return compiled.refuses("cpu", op)


def _reference_refuses(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    return None


# The default order, which `order.py` changes. `select` takes the first that does not refuse.
BACKENDS: tuple[Backend, ...] = (
    Backend("cuda", compiled.NAMESPACE, _cuda_refuses, forms=("levels",)),
    Backend("cpu", compiled.NAMESPACE, _cpu_refuses, forms=("factors",)),
    # On CPU tensors Triton is its interpreter, a thousand times slower than the reference.
    Backend("triton", triton_runtime.NAMESPACE, triton_runtime.refuses, when_named="cpu"),
    Backend("reference", f"{compiled.NAMESPACE}_reference", _reference_refuses, forms=("factors", "levels")),
)
NAMES = tuple(backend.name for backend in BACKENDS)

OPS = (
    "grid_attention",
    "attention_residual",
    "upsample_add",
    "dice_loss",
    "mask_bits",
    "mask_iou",
    "matrix_nms",
    "paste_masks",
)


def _by_name(name: str, where: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"{where}: expected backend to be one of {', '.join(NAMES)}, got {name!r}")


def _default_from_environment() -> Backend | None:
    name = os.environ.get("SOLO_ATTN_BACKEND", "")
    return _by_name(name, "SOLO_ATTN_BACKEND") if name else None


# Read once, at import: what runs must not change between two calls of a compiled function.
_DEFAULT = _default_from_environment()


def in_order(names: tuple[str, ...]) -> list[Backend]:
    """All backends; those of these names swap places so that they are in this order."""
    named = iter(sorted((b for b in BACKENDS if b.name in names), key=lambda b: names.index(b.name)))
    return [next(named) if backend.name in names else backend for backend in BACKENDS]


def select(
    op: str,
    device_type: str,
    dtype: torch.dtype,
    backend: str | None = None,
    size: int | None = None,
) -> Backend:
    """The backend that runs ``op`` on tensors of this device and dtype.

    Args:
        op: the op's public name.
        device_type: "cpu", "cuda", ...
        dtype: dtype of the op's floating-point input, or of its result where it has none.
        backend: None for the fastest that can run (or the one named by ``SOLO_ATTN_BACKEND``).
        size: as in `order.Row`; None for large inputs.

    Raises:
        ValueError: ``backend`` is not the name of a backend.
        RuntimeError: the named backend cannot run; the message says why. It never falls back silently.
    """
    chosen = _DEFAULT if backend is None else _by_name(backend, op)
    if chosen is not None:
        reason = chosen.refuses(op, device_type, dtype)
        if reason is not None:
            raise RuntimeError(f"{op}: backend {chosen.name!r} cannot run: {reason}")
        return chosen
    for candidate in in_order(row_of(op, device_type, dtype, size).backends):
        if candidate.when_named != device_type and candidate.refuses(op, device_type, dtype) is None:
            return candidate
    raise AssertionError("unreachable: the reference refuses nothing")


def tf32() -> bool:
    """Whether products of float32 on a GPU may be made of 10 bits of mantissa, as TensorFloat-32 has.

    They may where PyTorch's own matmuls may: ``torch.backends.cuda.matmul.fp32_precision``, which
    ``allow_tf32`` and ``torch.set_float32_matmul_precision`` set as well.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# A constant of the graph that torch.compile makes; it compiles again when PyTorch's switch changes.
tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]
