"""Grid attention: the dot products of every pair of grid cells (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import (
    CELLS_IN_RANGE,
    check_cells,
    check_float,
    check_like,
    check_number,
    check_tensor,
    fail,
)
from ..backends import compiled, select, tf32, triton_runtime
from ..reference import grid_attention as reference
from ._checks import check_grid_features
from ._library import declare, is_of, overload, pick, pick_form


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
        _check_list(op, cells, "grid_features", grid_features)
    size = (batch * side**2 if cells is None else cells.shape[0]) * side**2
    run = pick(op, grid_features, backend, size=size)
    # Kernels look at them themselves, where this takes nine small ones (one where Inductor joins them).
    if cells is not None and cells.is_cuda and not _asserts(run):
        _assert_inside(cells, batch, side * side)
    return run(grid_features, float(scale), cells, tf32())


def grid_attention_levels(
    grid_features: Sequence[Tensor], scale: float, cells: Sequence[Tensor], *, backend: str | None = None
) -> list[Tensor]:
    """`grid_attention` of the chosen cells of several levels, on the backend "cuda" in one launch.

    Where a gradient is needed, and on backends without such a form, there is one call for each level.

    Args:
        grid_features: of each level [B, C, S, S], at least one; all of one dtype and device.
        scale: as in `grid_attention`.
        cells: of each level int64 [K, 2].
        backend: None for the fastest that can run.

    Returns:
        Of each level [K, S, S].

    Raises:
        TypeError, ValueError, RuntimeError: as `grid_attention`, or levels of several dtypes or devices.
    """
    op = "grid_attention_levels"
    _check_counts(op, "grid_features", grid_features=grid_features, cells=cells)
    for x, chosen in zip(grid_features, cells, strict=True):
        check_grid_features(op, x)
        check_like(op, "grid_features", x, "the first level", grid_features[0])
        _check_list(op, chosen, "grid_features", x)
    check_number(op, "scale", scale)
    fused = _pick_levels(grid_features, backend)
    if fused is None:
        levels = zip(grid_features, cells, strict=True)
        return [grid_attention(x, scale, chosen, backend=backend) for x, chosen in levels]
    return list(fused(list(grid_features), [], [], list(cells), float(scale), tf32()))


def cell_logits(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    cells: Sequence[Tensor],
    *,
    backend: str | None = None,
) -> list[Tensor]:
    """Coarse mask logits of the chosen cells of several levels, on the backend "cuda" in one launch.

    ``out[k] = weights[n] . maps[b] + biases[n]`` for the cell (b, n): of a 1x1 convolution only those outputs
    that are asked for. Elsewhere, and where a gradient is needed, PyTorch makes each level's product, for
    each image; under autocast all of it is in autocast's dtype, as products are.

    Args:
        maps: of each level [B, C, h, w], at least one; all of one float dtype and device.
        weights: of each level [N, C].
        biases: of each level [N].
        cells: of each level int64 [K, 2] of (image, n).
        backend: None for the fastest that can run.

    Returns:
        Of each level [K, h, w].

    Raises:
        TypeError, ValueError, RuntimeError: sizes, dtypes or devices that do not fit, or a cell outside the
            batch or the outputs, which on a GPU is an assertion on the device.
    """
    op = "cell_logits"
    _check_counts(op, "maps", maps=maps, cells=cells, weights=weights, biases=biases)
    for x, weight, bias, chosen in zip(maps, weights, biases, cells, strict=True):
        check_tensor(op, "maps", x, "[B, C, h, w]")
        check_float(op, "maps", x)
        check_like(op, "maps", x, "the first level", maps[0])
        _check_output(op, x, weight, bias)
        _check_list(op, chosen, "maps", x)
    fused = _pick_levels([*maps, *weights, *biases], backend)
    if fused is None:
        levels = list(zip(maps, weights, biases, cells, strict=True))
        for x, weight, _, chosen in levels:
            if x.is_cuda or torch.compiler.is_compiling():  # to look at them would wait, or end the graph
                _assert_inside(chosen, len(x), len(weight))
            else:
                check_cells(chosen, len(x), len(weight))
        return [reference.cell_logits(*level) for level in levels]
    factors = [[x.to(_product_dtype(x)) for x in of_levels] for of_levels in (maps, weights, biases)]
    return list(fused(*factors, list(cells), 1.0, tf32()))


def levels_in_one_launch(like: Tensor) -> bool:
    """Whether `grid_attention_levels` and `cell_logits` are one launch each, for which the host never waits.

    Args:
        like: a tensor of the device and dtype in question. With gradients enabled the answer is no.
    """
    chosen = select("grid_attention", like.device.type, like.dtype)
    fused = chosen.name != "reference" and "levels" in chosen.forms
    return fused and not torch.is_grad_enabled()


def _check_counts(op: str, first: str, **levels: Sequence[Tensor]) -> None:
    """Refuse what are no lists, or not of as many levels as ``first``, of which there is at least one."""
    for name, given in levels.items():
        if not isinstance(given, (list, tuple)):
            kind = type(given).__name__
            raise TypeError(f"{op}: expected {name} to be a list of each level's tensor, got {kind}")
    count = len(levels[first])
    if count == 0:
        fail(op, first, "of at least 1 level", "0")
    for name, given in levels.items():
        if len(given) != count:
            fail(op, name, f"of {count} levels as {first} has", str(len(given)))


def _check_list(op: str, cells: Tensor, like: str, other: Tensor) -> None:
    """Refuse chosen cells that are not int64 [K, 2] beside ``other``."""
    check_tensor(op, "cells", cells, "[K, 2]")
    if cells.shape[1] != 2 or cells.dtype != torch.int64:
        fail(op, "cells", "int64 of shape [K, 2]", f"{cells.dtype} {list(cells.shape)}")
    check_like(op, "cells", cells, like, other, dtype=False)


def _check_output(op: str, maps: Tensor, weights: Tensor, biases: Tensor) -> None:
    """Refuse weights and biases that a 1x1 convolution of ``maps`` cannot have."""
    check_tensor(op, "weights", weights, "[N, C]")
    check_tensor(op, "biases", biases, "[N]")
    if weights.shape[1] != maps.shape[1]:
        fail(op, "weights", f"of shape [N, C] with C = {maps.shape[1]} as maps has", f"{list(weights.shape)}")
    if biases.shape[0] != weights.shape[0]:
        fail(
            op, "biases", f"of shape [N] with N = {weights.shape[0]} as weights has", f"{list(biases.shape)}"
        )
    for name, x in (("weights", weights), ("biases", biases)):
        same = x.dtype == maps.dtype or _product_dtype(x) == _product_dtype(maps)
        check_like(op, name, x, "maps", maps, dtype=not same)


def _assert_inside(cells: Tensor, images: int, count: int) -> None:
    """`check_cells` by the device, for which the host does not wait."""
    inside = (cells >= 0).all() & (cells[:, 0] < images).all() & (cells[:, 1] < count).all()
    torch._assert_async(inside, CELLS_IN_RANGE)


def _pick_levels(tensors: Sequence[Tensor], backend: str | None) -> Any:
    """The op that takes all levels; None where there is none, or where it would have to be differentiable."""
    fused = pick_form("grid_attention", tensors[0], backend, "levels")
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return None if differentiable else fused


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that PyTorch's own products have there."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def _asserts(run: Any) -> bool:
    """Whether it asserts on a GPU that cells are in range: a launch of Triton does if it is not traced."""
    op = "grid_attention"
    if is_of(run, triton_runtime.NAMESPACE, op):
        return not torch.compiler.is_compiling()
    return is_of(run, compiled.NAMESPACE, op)


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
declare(
    "grid_attention_levels",
    "(Tensor[] maps, Tensor[] weights, Tensor[] biases, Tensor[] cells, float scale, bool tf32=False)"
    " -> Tensor[]",
    reference=reference.grid_attention_levels,
    fake=lambda maps, weights, biases, cells, *_: [
        x.new_empty(chosen.shape[0], x.shape[2], x.shape[3]) for x, chosen in zip(maps, cells, strict=True)
    ],
    in_triton=False,
)
