"""Grid attention (paper section 3.3): the dot products of every pair of grid cells.

The map is symmetric: the full one takes the tiles on and above the diagonal and writes each twice. V is read
2 T times by tiles of N / T cells, from the second cache; the N x N map is written once, which is the floor.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Aot, config, launch, precision, tuned

# Multiplied exactly, float32 goes through the ordinary units, whose operands fill registers: small tiles.
_CONFIGS = (
    config(4, BLOCK=64, BLOCK_C=16),
    config(4, BLOCK=32, BLOCK_C=16),
)


@triton.jit
def _columns(features, channels, cells, at, inside, c, BLOCK_C: tl.constexpr):
    """V[c : c + BLOCK_C, at] as [BLOCK_C, len(at)], 0 outside."""
    channel = c + tl.arange(0, BLOCK_C)
    mask = (channel < channels)[:, None] & inside[None, :]
    return tl.load(features + channel[:, None].to(tl.int64) * cells + at[None, :], mask=mask, other=0.0)


@tuned(_CONFIGS, key=("channels", "cells", "PRECISION"))
@triton.jit
def _grid_attention_fwd_kernel(
    features, out, scale, channels, cells, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):
    # Row p of the triangle of T x T tiles has T - p of them. Rows p and T - 1 - p have T + 1 together.
    tiles = tl.cdiv(cells, BLOCK)
    p, q = tl.program_id(0) // (tiles + 1), tl.program_id(0) % (tiles + 1)
    upper = q < tiles - p
    i = tl.where(upper, p, tiles - 1 - p)
    j = tl.where(upper, p + q, q - 1)
    image = tl.program_id(1).to(tl.int64)
    features += image * channels * cells
    rows, columns = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for c in range(0, channels, BLOCK_C):
        left = _columns(features, channels, cells, rows, rows < cells, c, BLOCK_C)
        right = _columns(features, channels, cells, columns, columns < cells, c, BLOCK_C)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    total = (total * scale).to(out.dtype.element_ty)
    # Of a tile on the diagonal the upper half stands for both, so that the map is symmetric to the bit.
    mask = (rows < cells)[:, None] & (columns < cells)[None, :] & (rows[:, None] <= columns[None, :])
    out += image * cells * cells
    tl.store(out + rows[:, None].to(tl.int64) * cells + columns[None, :], total, mask=mask)
    mirrored = out + columns[:, None].to(tl.int64) * cells + rows[None, :]
    tl.store(mirrored, tl.trans(total), mask=tl.trans(mask))


def grid_attention(grid_features: Tensor, scale: float, cells: Tensor | None) -> Tensor:
    """F_new(c, i, j) = scale * V_c . V_(i*S+j) (eq. 3), for all cells c or for the chosen ones."""
    batch, channels, side, _ = grid_features.shape
    count = side * side
    features = grid_features.contiguous()
    out = features.new_empty(batch, count, side, side)
    if out.numel() == 0:
        return out

    def grid(meta):
        tiles = triton.cdiv(count, meta["BLOCK"])
        return tiles * (tiles + 1) // 2, batch

    launch(_grid_attention_fwd_kernel, grid, features, out, scale, channels, count, PRECISION=precision())
    return out


AOT = (
    Aot(
        _grid_attention_fwd_kernel,
        {"features": "*T", "out": "*T", "scale": "fp32"},
        {"PRECISION": "ieee"},
    ),
)
