"""Probability maps of chosen cells (docs/method.md, "Inference" step 3), tile by tile, on chip.

sigmoid(up(coarse) + up(attention)) at the level's own size is made once for all pixels that a tile of the
result has taps in, then enlarged by exchanging it between lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from ._bilinear import bilinear_tap, lerp
from ._launch import config
from ._maps import cell_and_tile, logits, sigmoid

# A tile of the result, and what it has taps in: at least 2 x 2 pixels.
BLOCK_X, BLOCK_Y, SOURCE_X, SOURCE_Y = 128, 16, 64, 8
CONFIGS = (config(8, 1, BLOCK_X=BLOCK_X, BLOCK_Y=BLOCK_Y, SOURCE_X=SOURCE_X, SOURCE_Y=SOURCE_Y),)


@triton.jit
def owned_tile(out_width, out_height, own_x, own_y, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr):
    """Of a program: its map, its tile's place among those of all maps, its first column and row, and which of
    the [BLOCK_X, BLOCK_Y] pixels from there on are its own.
    """
    tiles_x = tl.cdiv(out_width, own_x)
    tiles = tiles_x * tl.cdiv(out_height, own_y)
    k, tile = cell_and_tile(tiles)
    x, y = tile % tiles_x * own_x, tile // tiles_x * own_y
    mine_x = x + tl.arange(0, BLOCK_X) < tl.minimum(x + own_x, out_width)
    mine_y = y + tl.arange(0, BLOCK_Y) < tl.minimum(y + own_y, out_height)
    return k, k * tiles + tile, x, y, mine_x[:, None] & mine_y[None, :]


@triton.jit
def probabilities(
    coarse,
    attention,
    k,
    x,
    y,
    coarse_width,
    coarse_height,
    side,
    width,
    height,
    out_width,
    out_height,
    HAS_ATTENTION: tl.constexpr,
    SAME: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    SOURCE_X: tl.constexpr,
    SOURCE_Y: tl.constexpr,
):
    """[BLOCK_X, BLOCK_Y] from column ``x`` and row ``y`` of the map at ``out_size`` on.

    SAME where that is ``size``. Right in `owned` columns and rows, whose taps fit in SOURCE_X and SOURCE_Y.
    """
    columns, rows = x + tl.arange(0, BLOCK_X), y + tl.arange(0, BLOCK_Y)
    if SAME:
        return sigmoid(
            logits(
                coarse,
                attention,
                k,
                columns,
                rows,
                coarse_width,
                coarse_height,
                side,
                width,
                height,
                HAS_ATTENTION,
            )
        )
    left, right, across = bilinear_tap(columns, width, out_width)
    top, bottom, down = bilinear_tap(rows, height, out_height)
    x0, _, _ = bilinear_tap(x, width, out_width)
    y0, _, _ = bilinear_tap(y, height, out_height)
    source = sigmoid(
        logits(
            coarse,
            attention,
            k,
            x0 + tl.arange(0, SOURCE_X),
            y0 + tl.arange(0, SOURCE_Y),
            coarse_width,
            coarse_height,
            side,
            width,
            height,
            HAS_ATTENTION,
        )
    )
    wide = lerp(
        tl.gather(source, spread_x(left - x0, SOURCE_X, SOURCE_Y), 0),
        tl.gather(source, spread_x(right - x0, SOURCE_X, SOURCE_Y), 0),
        across[:, None],
    )
    return lerp(
        tl.gather(wide, spread_y(top - y0, BLOCK_X, SOURCE_Y), 1),
        tl.gather(wide, spread_y(bottom - y0, BLOCK_X, SOURCE_Y), 1),
        down[None, :],
    )


@triton.jit
def spread_x(index, LENGTH: tl.constexpr, OTHER: tl.constexpr):
    """Indices along the first dim, held inside, for every place along the other."""
    return tl.broadcast_to(tl.minimum(index, LENGTH - 1)[:, None], index.shape[0], OTHER)


@triton.jit
def spread_y(index, OTHER: tl.constexpr, LENGTH: tl.constexpr):
    """Indices along the second dim, held inside, for every place along the other."""
    return tl.broadcast_to(tl.minimum(index, LENGTH - 1)[None, :], OTHER, index.shape[0])


def owned(size: Sequence[int], out_size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the result that a program makes."""
    if tuple(size) == tuple(out_size):
        return BLOCK_Y, BLOCK_X
    return (
        _owned(size[0], out_size[0], BLOCK_Y, SOURCE_Y),
        _owned(size[1], out_size[1], BLOCK_X, SOURCE_X),
    )


def _owned(n_in: int, n_out: int, block: int, source: int) -> int:
    """The taps of n outputs in a row lie in (n - 1) n_in / n_out + 2 inputs."""
    most = min(block, (source - 2) * n_out // n_in) or 1
    return -(-n_out // -(-n_out // most))
