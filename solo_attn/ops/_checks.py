"""Checks of arguments: one form of message, naming the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..backends.registry import FLOAT_DTYPES


def fail(op: str, argument: str, expected: str, got: str) -> NoReturn:
    """Raise ``op: expected argument expected, got got``."""
    raise ValueError(f"{op}: expected {argument} {expected}, got {got}")


def check_tensor(op: str, argument: str, x: Any, shape: str) -> None:
    """Refuse what is not a tensor with as many dims as ``shape``, such as "[B, C, S, S]", names."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {argument} to be a tensor of shape {shape}, got {type(x).__name__}")
    if x.dim() != shape.count(",") + 1:
        fail(op, argument, f"of shape {shape}", f"{list(x.shape)} ({x.dim()} dims)")


def check_float(op: str, argument: str, x: Tensor) -> None:
    """Refuse dtypes other than float16, bfloat16, float32 and float64."""
    if x.dtype not in FLOAT_DTYPES:
        fail(op, argument, "of a float dtype (float16, bfloat16, float32, float64)", str(x.dtype))


def check_like(op: str, argument: str, x: Tensor, like: str, other: Tensor, *, dtype: bool = True) -> None:
    """Refuse a device (and dtype) other than that of another argument."""
    if x.device != other.device:
        fail(op, argument, f"on {like}'s device {other.device}", str(x.device))
    if dtype and x.dtype != other.dtype:
        fail(op, argument, f"of {like}'s dtype {other.dtype}", str(x.dtype))


def check_grid_features(op: str, grid_features: Any) -> None:
    """Refuse what is not float [B, C, S, S]."""
    check_tensor(op, "grid_features", grid_features, "[B, C, S, S]")
    if grid_features.shape[2] != grid_features.shape[3]:
        fail(op, "grid_features", "of shape [B, C, S, S], a square grid", f"{list(grid_features.shape)}")
    check_float(op, "grid_features", grid_features)


def check_coarse(op: str, coarse_logits: Any, attention: Any) -> None:
    """Refuse what is not float [K, h, w] with [K, S, S] or None beside it."""
    check_tensor(op, "coarse_logits", coarse_logits, "[K, h, w]")
    check_float(op, "coarse_logits", coarse_logits)
    if 0 in coarse_logits.shape[1:]:
        fail(op, "coarse_logits", "of shape [K, h, w] with h, w >= 1", f"{list(coarse_logits.shape)}")
    if attention is None:
        return
    check_tensor(op, "attention", attention, "[K, S, S]")
    count, rows, columns = attention.shape
    if count != coarse_logits.shape[0] or rows != columns or rows == 0:
        fail(
            op,
            "attention",
            f"of shape [K, S, S] with K = {coarse_logits.shape[0]} as coarse_logits has, and S >= 1",
            f"{list(attention.shape)}",
        )
    check_like(op, "attention", attention, "coarse_logits", coarse_logits)


def check_size(op: str, argument: str, size: Any) -> tuple[int, int]:
    """``size`` as (height, width), both at least 1."""
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or not all(isinstance(n, (int, torch.SymInt)) for n in size)
    ):
        raise TypeError(f"{op}: expected {argument} to be (height, width) in integers, got {size!r}")
    height, width = size
    if height < 1 or width < 1:
        fail(op, argument, "(height, width) of at least 1", f"({height}, {width})")
    return height, width


def check_threshold(op: str, threshold: float) -> None:
    """Refuse thresholds of a probability outside [0, 1)."""
    if not 0 <= threshold < 1:
        fail(op, "threshold", "in [0, 1)", str(threshold))
