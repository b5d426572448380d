"""Checks of arguments that several ops have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import check_float, check_like, check_number, check_tensor, fail
from .._utils.text import shown
from .mask_factors import MaskFactors

MOST_PIXELS = 2**40  # of a map: far beyond any memory, and far enough from where int64 ends


def check_grid_features(op: str, grid_features: Any) -> None:
    """Refuse what is not float [B, C, S, S]."""
    check_tensor(op, "grid_features", grid_features, "[B, C, S, S]")
    if grid_features.shape[2] != grid_features.shape[3]:
        fail(op, "grid_features", "of shape [B, C, S, S], a square grid", f"{list(grid_features.shape)}")
    check_float(op, "grid_features", grid_features)


def check_coarse(op: str, coarse_logits: Any, attention: Any) -> tuple[Tensor, str]:
    """Refuse what is not float [K, h, w], or its factors, with [K, S, S] or None beside it.

    Returns the tensor whose first dim is K, and its name.
    """
    if isinstance(coarse_logits, MaskFactors):
        first, name = _check_factors(op, coarse_logits), "kernels"
    else:
        first, name = _check_logits(op, coarse_logits), "coarse_logits"
    if attention is not None:
        check_tensor(op, "attention", attention, "[K, S, S]")
        count, rows, columns = attention.shape
        if count != first.shape[0] or rows != columns or rows == 0:
            wanted = f"of shape [K, S, S] with K = {first.shape[0]} as {name} has, and S >= 1"
            fail(op, "attention", wanted, f"{list(attention.shape)}")
        check_like(op, "attention", attention, name, first)
    return first, name


def check_levels(op: str, levels: Any) -> list[tuple[Tensor, str]]:
    """Refuse what is not a list of at least one (coarse_logits, attention, ...), all of one kind.

    Returns what `check_coarse` does of each level.
    """
    if not isinstance(levels, (list, tuple)) or not all(
        isinstance(level, tuple) and len(level) == 3 for level in levels
    ):
        raise TypeError(f"{op}: expected levels to be a list of tuples of three, got {shown(levels)}")
    if not levels:
        fail(op, "levels", "to be at least one", "0")
    found = [check_coarse(op, coarse, attention) for coarse, attention, _ in levels]
    for first, name in found[1:]:
        check_like(op, f"each level's {name}", first, f"the first level's {found[0][1]}", found[0][0])
    return found


MOST_LEVELS = 8  # of the fused form: csrc/common/levels.cuh


def can_be_joined(levels: Sequence[tuple[Tensor | MaskFactors, Tensor | None, Any]]) -> bool:
    """Whether the fused form of an op takes these levels."""
    return len(levels) <= MOST_LEVELS and all(isinstance(level[0], Tensor) for level in levels)


def attention_of(levels: Sequence[tuple[Any, Tensor | None, Any]]) -> list[Tensor]:
    """As the fused form takes it: no tensors if no level has any, else an empty one for each without."""
    if all(level[1] is None for level in levels):
        return []
    return [level[0].new_empty(0) if level[1] is None else level[1] for level in levels]


def _check_logits(op: str, coarse_logits: Any) -> Tensor:
    check_tensor(op, "coarse_logits", coarse_logits, "[K, h, w]")
    check_float(op, "coarse_logits", coarse_logits)
    if 0 in coarse_logits.shape[1:]:
        fail(op, "coarse_logits", "of shape [K, h, w] with h, w >= 1", f"{list(coarse_logits.shape)}")
    logits: Tensor = coarse_logits
    return logits


def _check_factors(op: str, factors: MaskFactors) -> Tensor:
    kernels, features, images = factors.kernels, factors.features, factors.images
    check_tensor(op, "kernels", kernels, "[K, E]")
    check_float(op, "kernels", kernels)
    count, depth = kernels.shape
    if depth == 0:
        fail(op, "kernels", "of shape [K, E] with E >= 1", f"{list(kernels.shape)}")
    check_tensor(op, "features", features, "[B, E, h, w]")
    if features.shape[1] != depth or 0 in features.shape:
        wanted = f"of shape [B, E, h, w] with E = {depth} as kernels has, and B, h, w >= 1"
        fail(op, "features", wanted, f"{list(features.shape)}")
    check_like(op, "features", features, "kernels", kernels)
    check_tensor(op, "images", images, "[K]")
    if images.shape[0] != count or images.dtype != torch.int64:
        wanted = f"int64 of shape [K] with K = {count} as kernels has"
        fail(op, "images", wanted, f"{images.dtype} {list(images.shape)}")
    check_like(op, "images", images, "kernels", kernels, dtype=False)
    return kernels


def _is_edge(n: Any) -> bool:
    return isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool)


def check_size(op: str, argument: str, size: Any) -> tuple[int, int]:
    """``size`` as (height, width), both at least 1."""
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not (_is_edge(size[0]) and _is_edge(size[1])):
        raise TypeError(f"{op}: expected {argument} to be (height, width) in integers, got {shown(size)}")
    height, width = size
    if height < 1 or width < 1:
        fail(op, argument, "(height, width) of at least 1", f"({height}, {width})")
    # A symbol of a graph has no size yet.
    if isinstance(height, int) and isinstance(width, int) and height * width > MOST_PIXELS:
        fail(op, argument, f"(height, width) of at most {MOST_PIXELS} pixels", shown((height, width)))
    return height, width


def check_threshold(op: str, threshold: float) -> None:
    """Refuse thresholds of a probability outside [0, 1)."""
    check_number(op, "threshold", threshold, finite=False)
    if not 0 <= threshold < 1:
        fail(op, "threshold", "in [0, 1)", str(threshold))
