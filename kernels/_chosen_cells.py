"""Grid attention of chosen cells: only their rows.

Cells of several images come in any order. A program takes a block of cells for one image, leaves out those of
other images, and does nothing if none is left; so each row is written once, and nothing has to be sorted.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# For mypy, kernels/ is outside of the package in which it is installed.
from .._utils.checks import CELLS_IN_RANGE, check_cells  # type: ignore[import-not-found]
from ._launch import asserting, launch
from ._tuning import config, tuned
from ._vectors import factor, mode_of, vectors

_CONFIGS = (
    config(4, BLOCK=16, BLOCK_COLUMNS=64, BLOCK_K=16),
    config(4, BLOCK=32, BLOCK_COLUMNS=64, BLOCK_K=32),
)


_IN_RANGE = tl.constexpr(CELLS_IN_RANGE)


@triton.jit
def _of_image(chosen_ptr, k, count, cells, image):
    """The chosen cells k: their numbers, and whether they belong to this image."""
    at = tl.load(chosen_ptr + 2 * k + 1, mask=k < count, other=-1)
    mine = (tl.load(chosen_ptr + 2 * k, mask=k < count, other=-1) == image) & (at >= 0) & (at < cells)
    return tl.where(mine, at, 0).to(tl.int32), mine


@tuned(_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit(do_not_specialize=("count",))
def _grid_attention_cells_fwd_kernel(
    features_ptr,
    chosen_ptr,
    out_ptr,
    scale,
    count,
    channels,
    cells,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if (tl.program_id(1) == 0) & (image == 0):  # each cell once
        of = tl.load(chosen_ptr + 2 * k, mask=k < count, other=0)
        number = tl.load(chosen_ptr + 2 * k + 1, mask=k < count, other=0)
        inside = (of >= 0) & (of < tl.num_programs(2)) & (number >= 0) & (number < cells)
        tl.device_assert(inside, _IN_RANGE)
    at, mine = _of_image(chosen_ptr, k, count, cells, image)
    if tl.max(mine.to(tl.int32), 0) > 0:
        features_ptr += image * channels * cells
        column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        total = tl.zeros((BLOCK, BLOCK_COLUMNS), tl.float32)
        for c in range(0, channels, BLOCK_K):
            one = vectors(features_ptr, channels, cells, at, mine, c, BLOCK_K)
            other = vectors(features_ptr, channels, cells, column, column < cells, c, BLOCK_K)
            total = tl.dot(
                tl.trans(factor(one, PRECISION)), factor(other, PRECISION), total, input_precision=PRECISION
            )
        place = k[:, None].to(tl.int64) * cells + column[None, :]
        mask = mine[:, None] & (column < cells)[None, :]
        tl.store(out_ptr + place, (total * scale).to(out_ptr.dtype.element_ty), mask=mask)


@tuned(_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit(do_not_specialize=("count",))
def _grid_attention_products_bwd_kernel(
    grad_ptr,
    features_ptr,
    chosen_ptr,
    products_ptr,
    count,
    channels,
    cells,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """products[k, c] = sum over cells m of grad[k, m] V[c, m]: what row k adds to its own cell's gradient."""
    image = tl.program_id(2).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _, mine = _of_image(chosen_ptr, k, count, cells, image)
    if tl.max(mine.to(tl.int32), 0) > 0:
        features_ptr += image * channels * cells
        c = tl.program_id(1) * BLOCK_COLUMNS
        total = tl.zeros((BLOCK, BLOCK_COLUMNS), tl.float32)
        for m in range(0, cells, BLOCK_K):
            column = m + tl.arange(0, BLOCK_K)
            mask = mine[:, None] & (column < cells)[None, :]
            g = tl.load(grad_ptr + k[:, None].to(tl.int64) * cells + column[None, :], mask=mask, other=0.0)
            v = vectors(features_ptr, channels, cells, column, column < cells, c, BLOCK_COLUMNS)
            total = tl.dot(
                factor(g, PRECISION), tl.trans(factor(v, PRECISION)), total, input_precision=PRECISION
            )
        channel = c + tl.arange(0, BLOCK_COLUMNS)
        mask = mine[:, None] & (channel < channels)[None, :]
        tl.store(products_ptr + k[:, None].to(tl.int64) * channels + channel[None, :], total, mask=mask)


@tuned(_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit(do_not_specialize=("count",))
def _grid_attention_cells_bwd_kernel(
    grad_ptr,
    features_ptr,
    chosen_ptr,
    products_ptr,
    out_ptr,
    scale,
    count,
    channels,
    cells,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A block of channels and cells of dV gathers from all chosen rows, and a cell from those of its own.

    A matrix of zeros and ones selects them. Rows are added in their order, including duplicates of a cell.
    """
    image = tl.program_id(2).to(tl.int64)
    features_ptr += image * channels * cells
    first, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = first + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK_COLUMNS), tl.float32)
    for start in range(0, count, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at, mine = _of_image(chosen_ptr, k, count, cells, image)
        if tl.max(mine.to(tl.int32), 0) > 0:
            mask = mine[:, None] & (column < cells)[None, :]
            g = tl.load(grad_ptr + k[:, None].to(tl.int64) * cells + column[None, :], mask=mask, other=0.0)
            v = vectors(features_ptr, channels, cells, at, mine, first, BLOCK)
            total = tl.dot(factor(v, PRECISION), factor(g, PRECISION), total, input_precision=PRECISION)
            mask = mine[:, None] & (channel < channels)[None, :]
            own = products_ptr + k[:, None].to(tl.int64) * channels + channel[None, :]
            own = factor(tl.trans(tl.load(own, mask=mask, other=0.0)), PRECISION)
            belongs = (at[:, None] == column[None, :]) & mine[:, None]
            total = tl.dot(own, belongs.to(tl.float32), total, input_precision=PRECISION)
    mask = (channel < channels)[:, None] & (column < cells)[None, :]
    out_ptr += image * channels * cells + channel[:, None] * cells + column[None, :]
    tl.store(out_ptr, (total * scale).to(out_ptr.dtype.element_ty), mask=mask)


def rows(features: Tensor, scale: float, cells: Tensor, tf32: bool) -> Tensor:
    """[K, S, S] of the cells [K, 2]; a cell outside the batch or the grid is never read."""
    batch, channels, side, _ = features.shape
    if not cells.is_cuda or batch * side == 0:  # in the interpreter; on a GPU the kernel asserts it
        check_cells(cells, batch, side * side)
    chosen, out = cells.contiguous(), features.new_empty(len(cells), side, side)
    if out.numel() > 0 and batch > 0:
        sizes, grid = (len(cells), channels, side * side), _blocks(len(cells), side * side, batch)
        mode = mode_of(features, tf32)
        tensors = features, chosen, out
        launch(_grid_attention_cells_fwd_kernel, grid, *tensors, scale, *sizes, **mode, **asserting())
    return out


def rows_bwd(grad: Tensor, features: Tensor, scale: float, cells: Tensor, tf32: bool, out: Tensor) -> None:
    """The gradient of the features from that of the rows [K, S, S], written to ``out`` (not empty)."""
    batch, channels, side, _ = features.shape
    chosen, sizes = cells.contiguous(), (len(cells), channels, side * side)
    products = features.new_empty(len(cells), channels, dtype=torch.float32)
    mode = mode_of(features, tf32)
    if len(cells) > 0:
        grid = _blocks(len(cells), channels, batch)
        launch(_grid_attention_products_bwd_kernel, grid, grad, features, chosen, products, *sizes, **mode)
    grid, tensors = _blocks(channels, side * side, batch), (grad, features, chosen, products, out)
    launch(_grid_attention_cells_bwd_kernel, grid, *tensors, scale, *sizes, **mode)


def _blocks(rows: int, columns: int, batch: int) -> Any:
    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return triton.cdiv(rows, meta["BLOCK"]), triton.cdiv(columns, meta["BLOCK_COLUMNS"]), batch

    return grid
