"""Grid attention (paper section 3.3): the dot products of every pair of grid cells.

The whole map is symmetric: the kernel takes the tiles on and above the diagonal and writes each twice.
Backward, dV = scale * V (dG + dG^T), where dG is read by rows and by columns and summed tile by tile.
Nothing is added by atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Aot, config, launch, precision, tuned

# Multiplied exactly, float32 takes its operands through registers: blocks of 16 along the sum, small tiles.
_CONFIGS = (
    config(4, BLOCK=32, BLOCK_K=16),
    config(4, BLOCK=64, BLOCK_K=16),
    config(8, BLOCK=64, BLOCK_K=32),
)
_BWD_CONFIGS = (
    config(4, BLOCK=32, BLOCK_K=16),
    config(8, BLOCK=64, BLOCK_K=16),
    config(8, BLOCK=32, BLOCK_K=32),
)
_CELLS_CONFIGS = (
    config(4, BLOCK=16, BLOCK_COLUMNS=64, BLOCK_K=16),
    config(4, BLOCK=32, BLOCK_COLUMNS=64, BLOCK_K=32),
)


@triton.jit
def _vectors(features, channels, cells, at, inside, c, BLOCK_K: tl.constexpr):
    """V[c : c + BLOCK_K, at] as [BLOCK_K, len(at)], 0 where it is not ``inside``."""
    channel = c + tl.arange(0, BLOCK_K)
    mask = (channel < channels)[:, None] & inside[None, :]
    return tl.load(features + channel[:, None] * cells + at[None, :], mask=mask, other=0.0)


@triton.jit
def _of_image(chosen, k, count, cells, image):
    """Of the chosen cells k: their numbers, and whether they are this image's."""
    at = tl.load(chosen + 2 * k + 1, mask=k < count, other=-1)
    mine = (tl.load(chosen + 2 * k, mask=k < count, other=-1) == image) & (at >= 0) & (at < cells)
    return tl.where(mine, at, 0).to(tl.int32), mine


@tuned(_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_fwd_kernel(
    features, out, scale, channels, cells, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    # Row p of the triangle of T x T tiles has T - p of them. Rows p and T - 1 - p have T + 1 together.
    tiles = tl.cdiv(cells, BLOCK)
    p, q = tl.program_id(0) // (tiles + 1), tl.program_id(0) % (tiles + 1)
    upper = q < tiles - p
    top, left = tl.where(upper, p, tiles - 1 - p) * BLOCK, tl.where(upper, p + q, q - 1) * BLOCK
    image = tl.program_id(1).to(tl.int64)
    features += image * channels * cells
    r = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for c in range(0, channels, BLOCK_K):
        one = _vectors(features, channels, cells, top + r, top + r < cells, c, BLOCK_K)
        other = _vectors(features, channels, cells, left + r, left + r < cells, c, BLOCK_K)
        total = tl.dot(tl.trans(one), other, total, input_precision=PRECISION)
    total = (total * scale).to(out.dtype.element_ty)
    # Of a tile on the diagonal the upper half stands for both, so that the map is symmetric to the bit.
    mask = (top + r < cells)[:, None] & (left + r < cells)[None, :] & (top + r[:, None] <= left + r[None, :])
    place = r[:, None] * cells + r[None, :]
    out += image * cells * cells
    tl.store(out + (top.to(tl.int64) * cells + left) + place, total, mask=mask)
    tl.store(out + (left.to(tl.int64) * cells + top) + place, tl.trans(total), mask=tl.trans(mask))


@tuned(_CELLS_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_cells_fwd_kernel(
    features,
    chosen,
    out,
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
    at, mine = _of_image(chosen, k, count, cells, image)
    if tl.max(mine.to(tl.int32), 0) > 0:
        features += image * channels * cells
        column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        total = tl.zeros((BLOCK, BLOCK_COLUMNS), tl.float32)
        for c in range(0, channels, BLOCK_K):
            one = _vectors(features, channels, cells, at, mine, c, BLOCK_K)
            other = _vectors(features, channels, cells, column, column < cells, c, BLOCK_K)
            total = tl.dot(tl.trans(one), other, total, input_precision=PRECISION)
        place = k[:, None].to(tl.int64) * cells + column[None, :]
        mask = mine[:, None] & (column < cells)[None, :]
        tl.store(out + place, (total * scale).to(out.dtype.element_ty), mask=mask)


@tuned(_BWD_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_bwd_kernel(
    grad,
    features,
    out,
    scale,
    channels,
    cells,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A block of channels and cells of dV; the sum runs over the cells."""
    image = tl.program_id(2).to(tl.int64)
    features += image * channels * cells
    grad += image * cells * cells
    first, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for n in range(0, cells, BLOCK_K):
        row = n + tl.arange(0, BLOCK_K)
        v = _vectors(features, channels, cells, row, row < cells, first, BLOCK).to(grad.dtype.element_ty)
        mask = (row < cells)[:, None] & (column < cells)[None, :]
        down = tl.load(grad + (row[:, None].to(tl.int64) * cells + column[None, :]), mask=mask, other=0.0)
        across = grad + (column[:, None].to(tl.int64) * cells + row[None, :])
        across = tl.trans(tl.load(across, mask=tl.trans(mask), other=0.0))
        if grad.dtype.element_ty == tl.float32:
            total = tl.dot(v, down + across, total, input_precision=PRECISION)
        else:  # a sum in half precision would be rounded once more
            total = tl.dot(v, down, total)
            total = tl.dot(v, across, total)
    channel = first + tl.arange(0, BLOCK)
    mask = (channel < channels)[:, None] & (column < cells)[None, :]
    out += image * channels * cells + channel[:, None] * cells + column[None, :]
    tl.store(out, (total * scale).to(out.dtype.element_ty), mask=mask)


@tuned(_CELLS_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_products_bwd_kernel(
    grad,
    features,
    chosen,
    products,
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
    _, mine = _of_image(chosen, k, count, cells, image)
    if tl.max(mine.to(tl.int32), 0) > 0:
        features += image * channels * cells
        c = tl.program_id(1) * BLOCK_COLUMNS
        total = tl.zeros((BLOCK, BLOCK_COLUMNS), tl.float32)
        for m in range(0, cells, BLOCK_K):
            column = m + tl.arange(0, BLOCK_K)
            mask = mine[:, None] & (column < cells)[None, :]
            g = tl.load(grad + k[:, None].to(tl.int64) * cells + column[None, :], mask=mask, other=0.0)
            v = _vectors(features, channels, cells, column, column < cells, c, BLOCK_COLUMNS)
            total = tl.dot(g, tl.trans(v), total, input_precision=PRECISION)
        channel = c + tl.arange(0, BLOCK_COLUMNS)
        mask = mine[:, None] & (channel < channels)[None, :]
        tl.store(products + k[:, None].to(tl.int64) * channels + channel[None, :], total, mask=mask)


@tuned(_CELLS_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_cells_bwd_kernel(
    grad,
    features,
    chosen,
    products,
    out,
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

    Which those are is a matrix of zeros and ones. Rows are added in their order, a cell's twins included.
    """
    image = tl.program_id(2).to(tl.int64)
    features += image * channels * cells
    first, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = first + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK_COLUMNS), tl.float32)
    for start in range(0, count, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at, mine = _of_image(chosen, k, count, cells, image)
        if tl.max(mine.to(tl.int32), 0) > 0:
            mask = mine[:, None] & (column < cells)[None, :]
            g = tl.load(grad + k[:, None].to(tl.int64) * cells + column[None, :], mask=mask, other=0.0)
            v = _vectors(features, channels, cells, at, mine, first, BLOCK)
            total = tl.dot(v, g, total, input_precision=PRECISION)
            mask = mine[:, None] & (channel < channels)[None, :]
            own = products + k[:, None].to(tl.int64) * channels + channel[None, :]
            own = tl.trans(tl.load(own, mask=mask, other=0.0))
            belongs = (at[:, None] == column[None, :]) & mine[:, None]
            total = tl.dot(own, belongs.to(tl.float32), total, input_precision=PRECISION)
    mask = (channel < channels)[:, None] & (column < cells)[None, :]
    out += image * channels * cells + channel[:, None] * cells + column[None, :]
    tl.store(out, (total * scale).to(out.dtype.element_ty), mask=mask)


def grid_attention(grid_features: Tensor, scale: float, cells: Tensor | None) -> Tensor:
    """F_new(c, i, j) = scale * V_c . V_(i*S+j) (eq. 3), for all cells c or for the chosen ones.

    A chosen cell outside the batch or the grid is never read. On a GPU it fails as PyTorch's own indexing
    does, by an assertion on the device, since looking at the numbers would have the host wait for them.
    """
    batch, channels, side, _ = grid_features.shape
    count = side * side
    features = grid_features.contiguous()
    mode = _mode(features)
    if cells is not None:
        _check_cells(cells, batch, count)
        chosen = cells.contiguous()
        out = features.new_empty(len(cells), side, side)
        if out.numel() > 0 and batch > 0:
            sizes = len(cells), channels, count
            grid = _blocks(len(cells), count, batch)
            launch(
                _grid_attention_cells_fwd_kernel,
                grid,
                features,
                chosen,
                out,
                scale,
                *sizes,
                **_mode(features),
            )
        return out
    out = features.new_empty(batch, count, side, side)

    def triangle(meta: dict[str, Any]) -> tuple[int, int]:
        tiles = triton.cdiv(count, meta["BLOCK"])
        return tiles * (tiles + 1) // 2, batch

    if out.numel() > 0:
        launch(_grid_attention_fwd_kernel, triangle, features, out, scale, channels, count, **mode)
    return out


def grid_attention_bwd(grad: Tensor, grid_features: Tensor, scale: float, cells: Tensor | None) -> Tensor:
    """DV = scale * V (dG + dG^T); with chosen cells only their rows of dG are not zero.

    ``grad`` may be float32 beside features in half precision: it is not rounded to theirs.
    """
    batch, channels, side, _ = grid_features.shape
    count = side * side
    features, upstream = grid_features.contiguous(), grad.contiguous()
    out = torch.empty_like(features)
    if out.numel() == 0:
        return out
    mode = _mode(features)
    if cells is None:

        def blocks(meta: dict[str, Any]) -> tuple[int, int, int]:
            block = meta["BLOCK"]
            return triton.cdiv(channels, block), triton.cdiv(count, block), batch

        launch(_grid_attention_bwd_kernel, blocks, upstream, features, out, scale, channels, count, **mode)
        return out
    chosen, sizes = cells.contiguous(), (len(cells), channels, count)
    products = features.new_empty(len(cells), channels, dtype=torch.float32)
    if len(cells) > 0:
        grid = _blocks(len(cells), channels, batch)
        launch(
            _grid_attention_products_bwd_kernel,
            grid,
            upstream,
            features,
            chosen,
            products,
            *sizes,
            **mode,
        )
    grid = _blocks(channels, count, batch)
    launch(
        _grid_attention_cells_bwd_kernel,
        grid,
        upstream,
        features,
        chosen,
        products,
        out,
        scale,
        *sizes,
        **mode,
    )
    return out


def _blocks(rows: int, columns: int, batch: int) -> Any:
    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return triton.cdiv(rows, meta["BLOCK"]), triton.cdiv(columns, meta["BLOCK_COLUMNS"]), batch

    return grid


def _mode(features: Tensor) -> dict[str, str]:
    # Of half precision a sum in float32 may be a factor again; tf32 has the digits that the result will have.
    return {"PRECISION": precision() if features.dtype == torch.float32 else "tf32"}


def _check_cells(cells: Tensor, batch: int, count: int) -> None:
    if cells.shape[0] == 0:
        return
    if cells.is_cuda:
        inside = (cells >= 0).all() & (cells[:, 0] < batch).all() & (cells[:, 1] < count).all()
        torch._assert_async(inside, f"grid_attention: expected cells of (image < {batch}, cell < {count})")
        return
    low, high = cells.amin(0).tolist(), cells.amax(0).tolist()
    if low[0] < 0 or high[0] >= batch or low[1] < 0 or high[1] >= count:
        raise ValueError(
            f"grid_attention: expected cells of (image < {batch}, cell < {count}), "
            f"got images {low[0]}..{high[0]} and cells {low[1]}..{high[1]}"
        )


_TYPES = {
    "grad": "*T",
    "features": "*T",
    "chosen": "*i64",
    "products": "*fp32",
    "out": "*T",
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
        {**_TYPES, "grad": "*fp32"},
        {"PRECISION": "tf32"},
        ("bf16", "fp16"),
        "float32 gradient",
    ),
)
