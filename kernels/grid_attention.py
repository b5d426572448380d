"""Grid attention (paper section 3.3): the dot products of every pair of grid cells.

The whole map is symmetric: the kernel takes the tiles on and above the diagonal and writes each twice.
Backward, dV = scale * V (dG + dG^T), where dG is read by rows and by columns and summed tile by tile.
There are no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._chosen_cells import (
    _grid_attention_cells_bwd_kernel,
    _grid_attention_cells_fwd_kernel,
    _grid_attention_products_bwd_kernel,
    rows,
    rows_bwd,
)
from ._launch import Aot, launch
from ._tuning import config, tuned
from ._vectors import check_features, factor, mode_of, vectors

# Exact float32 products take their operands from registers: blocks of 16 along the sum, small tiles.
_CONFIGS = (
    config(4, BLOCK=32, BLOCK_K=16),
    config(4, BLOCK=64, BLOCK_K=16),
    config(8, BLOCK=64, BLOCK_K=32),
)
_BWD_CONFIGS = (
    config(4, BLOCK=32, BLOCK_K=16),
    config(8, num_stages=3, BLOCK=64, BLOCK_K=16),
    config(8, num_stages=1, BLOCK=32, BLOCK_K=32),
)


@tuned(_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_fwd_kernel(
    features_ptr,
    out_ptr,
    scale,
    channels,
    cells,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Row p of the triangle of T x T tiles has T - p of them. Rows p and T - 1 - p have T + 1 together.
    tiles = tl.cdiv(cells, BLOCK)
    p, q = tl.program_id(0) // (tiles + 1), tl.program_id(0) % (tiles + 1)
    upper = q < tiles - p
    top, left = tl.where(upper, p, tiles - 1 - p) * BLOCK, tl.where(upper, p + q, q - 1) * BLOCK
    image = tl.program_id(1).to(tl.int64)
    features_ptr += image * channels * cells
    r = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for c in range(0, channels, BLOCK_K):
        one = vectors(features_ptr, channels, cells, top + r, top + r < cells, c, BLOCK_K)
        other = vectors(features_ptr, channels, cells, left + r, left + r < cells, c, BLOCK_K)
        total = tl.dot(
            tl.trans(factor(one, PRECISION)), factor(other, PRECISION), total, input_precision=PRECISION
        )
    total = (total * scale).to(out_ptr.dtype.element_ty)
    # In a tile on the diagonal the upper half is used for both, so that the map is exactly symmetric.
    mask = (top + r < cells)[:, None] & (left + r < cells)[None, :] & (top + r[:, None] <= left + r[None, :])
    place = r[:, None] * cells + r[None, :]
    out_ptr += image * cells * cells
    tl.store(out_ptr + (top.to(tl.int64) * cells + left) + place, total, mask=mask)
    tl.store(out_ptr + (left.to(tl.int64) * cells + top) + place, tl.trans(total), mask=tl.trans(mask))


@tuned(_BWD_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_bwd_kernel(
    grad_ptr,
    features_ptr,
    out_ptr,
    scale,
    channels,
    cells,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A block of channels and cells of dV; the sum runs over the cells."""
    image = tl.program_id(2).to(tl.int64)
    features_ptr += image * channels * cells
    grad_ptr += image * cells * cells
    first, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for n in range(0, cells, BLOCK_K):
        row = n + tl.arange(0, BLOCK_K)
        v = vectors(features_ptr, channels, cells, row, row < cells, first, BLOCK).to(
            grad_ptr.dtype.element_ty
        )
        mask = (row < cells)[:, None] & (column < cells)[None, :]
        down = tl.load(grad_ptr + (row[:, None].to(tl.int64) * cells + column[None, :]), mask=mask, other=0.0)
        across = grad_ptr + (column[:, None].to(tl.int64) * cells + row[None, :])
        across = tl.trans(tl.load(across, mask=tl.trans(mask), other=0.0))
        if grad_ptr.dtype.element_ty == tl.float32:
            total = tl.dot(
                factor(v, PRECISION), factor(down + across, PRECISION), total, input_precision=PRECISION
            )
        else:  # a sum in half precision would be rounded once more
            total = tl.dot(v, down, total)
            total = tl.dot(v, across, total)
    channel = first + tl.arange(0, BLOCK)
    mask = (channel < channels)[:, None] & (column < cells)[None, :]
    out_ptr += image * channels * cells + channel[:, None] * cells + column[None, :]
    tl.store(out_ptr, (total * scale).to(out_ptr.dtype.element_ty), mask=mask)


def grid_attention(grid_features: Tensor, scale: float, cells: Tensor | None, tf32: bool = False) -> Tensor:
    """F_new(c, i, j) = scale * V_c . V_(i*S+j) (eq. 3), for all cells c or for the chosen ones.

    A chosen cell outside the batch or the grid is never read. On a GPU it fails as PyTorch's own indexing
    does, by an assertion on the device, since reading the numbers would make the host wait for them.
    """
    check_features("grid_attention", grid_features)
    features = grid_features.contiguous()
    if cells is not None:
        return rows(features, scale, cells, tf32)
    batch, channels, side, _ = features.shape
    count = side * side
    out = features.new_empty(batch, count, side, side)

    def triangle(meta: dict[str, Any]) -> tuple[int, int]:
        tiles = triton.cdiv(count, meta["BLOCK"])
        return tiles * (tiles + 1) // 2, batch

    if out.numel() > 0:
        mode = mode_of(features, tf32)
        launch(_grid_attention_fwd_kernel, triangle, features, out, scale, channels, count, **mode)
    return out


def grid_attention_bwd(
    grad: Tensor, grid_features: Tensor, scale: float, cells: Tensor | None, tf32: bool = False
) -> Tensor:
    """DV = scale * V (dG + dG^T); with chosen cells only their rows of dG are not zero.

    ``grad`` may be float32 beside features in half precision: it is not rounded to their dtype.
    """
    check_features("grid_attention", grid_features)
    features, upstream = grid_features.contiguous(), grad.contiguous()
    batch, channels, side, _ = features.shape
    count = side * side
    out = torch.empty_like(features)
    if out.numel() == 0:
        return out
    if cells is not None:
        rows_bwd(upstream, features, scale, cells, tf32, out)
        return out

    def blocks(meta: dict[str, Any]) -> tuple[int, int, int]:
        block = meta["BLOCK"]
        return triton.cdiv(channels, block), triton.cdiv(count, block), batch

    mode = mode_of(features, tf32)
    launch(_grid_attention_bwd_kernel, blocks, upstream, features, out, scale, channels, count, **mode)
    return out


_TYPES = {
    "grad_ptr": "*T",
    "features_ptr": "*T",
    "chosen_ptr": "*i64",
    "products_ptr": "*fp32",
    "out_ptr": "*T",
    "scale": "fp32",
}
AOT = (
    *(
        Aot(kernel, _TYPES, {"PRECISION": mode}, dtypes)
        for kernel in (
            _grid_attention_fwd_kernel,
            _grid_attention_bwd_kernel,
            _grid_attention_cells_fwd_kernel,
            _grid_attention_products_bwd_kernel,
            _grid_attention_cells_bwd_kernel,
        )
        for mode, dtypes in (("ieee", ("fp32",)), ("tf32", ("fp32", "bf16")))
    ),
    # What attention_residual's backward pass calls.
    Aot(
        _grid_attention_bwd_kernel,
        {**_TYPES, "grad_ptr": "*fp32"},
        {"PRECISION": "tf32"},
        ("bf16", "fp16"),
        "float32 gradient",
    ),
)
