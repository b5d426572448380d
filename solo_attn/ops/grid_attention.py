"""Grid attention: the dot products of every pair of grid cells (paper section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._utils.checks import CELLS_IN_RANGE, check_like, check_number, check_tensor, fail
from ..backends import compiled, tf32
from ..reference import grid_attention as reference
from ._checks import check_grid_features
from ._library import declare, overload, pick


def grid_attention(
    grid_features: Tensor, scale: float = 1.0, cells: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Dot products of grid cells' feature vectors (paper eq. 2 and 3).

    ``out[b, c, i, j] = scale * V_c . V_(i*S+j)``, V_n being the C-vector of cell n = row * S + column.
    Sums are made in float32 for half precision. Where PyTorch's own matmuls of float32 on a GPU may use
    TensorFloat-32, so do these, and their backward pass. Differentiable in ``grid_features``, once.

    Args:
        grid_features: [B, C, S, S], a level's features on its grid; float16, bfloat16, float32, float64.
        scale: multiplies every dot product (1 is the paper to the letter).
        cells: int64 [K, 2] of (image, cell), to have the rows of these cells only; None for all.
        backend: None for the fastest that can run.

    Returns:
        [B, S*S, S, S], or [K, S, S] with ``cells``; dtype of ``grid_features``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, or a cell outside the
            batch or the grid. On a GPU the latter is an assertion on the device, as of PyTorch's own
            indexing: looking at ``cells`` would have the host wait for them, and break a CUDA graph.
        RuntimeError: the named backend cannot run.

    Example:
        >>> cell = torch.tensor([[0, 4]])  # the centre of image 0's 3 x 3 grid
        >>> grid_attention(torch.ones(1, 2, 3, 3), cells=cell)
        tensor([[[2., 2., 2.],
                 [2., 2., 2.],
                 [2., 2., 2.]]])
    """
    op = "grid_attention"
    check_grid_features(op, grid_features)
    check_number(op, "scale", scale)
    batch, _, side, _ = grid_features.shape
    if cells is not None:
        check_tensor(op, "cells", cells, "[K, 2]")
        if cells.shape[1] != 2 or cells.dtype != torch.int64:
            fail(op, "cells", "int64 of shape [K, 2]", f"{cells.dtype} {list(cells.shape)}")
        check_like(op, "cells", cells, "grid_features", grid_features, dtype=False)
    size = (batch * side**2 if cells is None else cells.shape[0]) * side**2
    run = pick(op, grid_features, backend, size=size)
    # The CUDA kernel looks at them itself, where this takes nine small ones.
    if cells is not None and cells.is_cuda and run is not overload(compiled.NAMESPACE, op):
        inside = (cells >= 0).all() & (cells[:, 0] < batch).all() & (cells[:, 1] < side * side).all()
        torch._assert_async(inside, CELLS_IN_RANGE)
    return run(grid_features, float(scale), cells, tf32())


def _fake(grid_features: Tensor, scale: float, cells: Tensor | None, tf32: bool = False) -> Tensor:
    batch, _, side, _ = grid_features.shape
    lead = (batch, side * side) if cells is None else (cells.shape[0],)
    return grid_features.new_empty(*lead, side, side)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grid_features, ctx.scale, cells, ctx.tf32 = inputs
    ctx.save_for_backward(grid_features, cells)


def _backward(namespace: str, ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    grid_features, cells = ctx.saved_tensors
    backward = overload(namespace, "grid_attention_bwd")
    return backward(grad, grid_features, ctx.scale, cells, ctx.tf32), None, None, None


declare(
    "grid_attention_bwd",
    "(Tensor grad, Tensor grid_features, float scale, Tensor? cells, bool tf32=False) -> Tensor",
    reference=reference.grid_attention_bwd,
    fake=lambda grad, grid_features, *_: grid_features.new_empty(grid_features.shape),
)
declare(
    "grid_attention",
    "(Tensor grid_features, float scale, Tensor? cells, bool tf32=False) -> Tensor",
    reference=reference.grid_attention,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
