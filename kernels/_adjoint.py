"""The transpose of a bilinear enlargement: how it is divided among programs, and its two steps.

A program owns BLOCK_I rows and up to BLOCK_J columns of the input. It walks the rows of the output to which
these contribute, BLOCK_Y at a time, BLOCK_X columns wide, and adds them to its own rows (no lane reads
another's); the columns are gathered once, at the end. There are no atomics, and sums are added in a fixed
order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from ._bilinear import bilinear_first, bilinear_share, window
from ._maps import cell_and_tile
from ._tuning import config

BLOCK_J, BLOCK_X = 64, 128

# One stage: Triton would fetch the taps of later rows through shared memory, four bytes at a time.
CONFIGS = (config(8, 1, BLOCK_I=16, BLOCK_Y=4, BLOCK_J=BLOCK_J, BLOCK_X=BLOCK_X),)


@triton.jit
def owned_block(height_in, width_in, own, BLOCK_I: tl.constexpr):
    """A program's map (int64), its first row and column of the input, and the end of both."""
    blocks_x = tl.cdiv(width_in, own)
    k, block = cell_and_tile(blocks_x * tl.cdiv(height_in, BLOCK_I))
    i, j = block // blocks_x * BLOCK_I, block % blocks_x * own
    return k, i, j, i + BLOCK_I, tl.minimum(j + own, width_in)


@triton.jit
def outputs_of(begin, end, size_in, size_out):
    """The range of outputs, its end excluded, to which the inputs ``begin`` to ``end`` contribute."""
    return bilinear_first(begin - 1, size_in, size_out), bilinear_first(end, size_in, size_out)


@triton.jit
def add_rows(tile, g, i, ys, height_in, height, BLOCK_I: tl.constexpr):
    """The transpose along y: ``tile`` [I, X] of rows from ``i`` on, plus shares in rows ``ys`` of ``g``.

    ``g`` is [Y, X]. An output to which an input does not contribute never reaches it, not even as 0 x NaN.
    """
    rows = i + tl.arange(0, BLOCK_I)
    weight = bilinear_share(rows[:, None], ys[None, :], height_in, height)[:, :, None]
    return tile + tl.sum(weight * tl.where(weight > 0, g[None, :, :], 0.0), 1)


@triton.jit
def gather_columns(tile, result, chunk, j, width_in, width, most, BLOCK_X: tl.constexpr):
    """The transpose along x, added to ``result`` [I, J], whose columns begin at ``j``.

    ``tile`` [I, BLOCK_X] holds outputs from ``chunk`` on, in rows of the input. Each of the inputs takes its
    share of the outputs that it has a part in, of which there are ``most`` at most.
    """
    columns = j + tl.arange(0, result.shape[1])
    begin = tl.maximum(bilinear_first(columns - 1, width_in, width), chunk)
    for step in range(most):
        x = begin + step
        weight = tl.where(
            x < tl.minimum(chunk + BLOCK_X, width), bilinear_share(columns, x, width_in, width), 0.0
        )
        index = tl.broadcast_to(tl.minimum(x - chunk, BLOCK_X - 1)[None, :], result.shape)
        # An index before the chunk belongs to another input: its weight is 0.
        part = tl.gather(tile, tl.maximum(index, 0), 1)
        result += weight[None, :] * tl.where(weight > 0, part, 0.0)
    return result


@triton.jit
def store_block(out_ptr, result, k, i, j, end, height_in, width_in):
    """Write ``result`` [I, J] to map ``k`` from row ``i`` and column ``j`` on, up to column ``end``."""
    rows, columns = i + tl.arange(0, result.shape[0]), j + tl.arange(0, result.shape[1])
    place = (k * height_in + rows)[:, None] * width_in + columns[None, :]
    inside = (rows < height_in)[:, None] & (columns < end)[None, :]
    tl.store(out_ptr + place, result.to(out_ptr.dtype.element_ty), mask=inside)


def division(count: int, size_in: tuple[int, int], width: int) -> tuple[Callable[..., tuple[int]], int, int]:
    """For ``count`` maps of ``size_in``: the grid of programs, and the arguments ``own`` and ``most``."""
    height_in, width_in = size_in
    own = owned_columns(width_in, width)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (count * triton.cdiv(height_in, meta["BLOCK_I"]) * triton.cdiv(width_in, own),)

    return grid, own, min(window(width_in, width), BLOCK_X)


def owned_columns(width_in: int, width: int) -> int:
    """As many as BLOCK_X outputs cover, in blocks of equal size; wider ones are walked in steps."""
    most = min(BLOCK_J, max(1, (BLOCK_X - 2) * width_in // width - 1))
    return -(-width_in // -(-width_in // most))
