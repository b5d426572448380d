"""Checks of arguments that several ops have in common."""

from __future__ import annotations

from typing import Any

import torch

from .._utils.checks import check_float, check_like, check_tensor, fail


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
