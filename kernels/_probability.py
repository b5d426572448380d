"""Probability maps of chosen cells (docs/method.md, "Inference" step 3), tile by tile, on chip.

sigmoid(up(coarse) + up(attention)) at the level's own size is made once for all pixels that a tile of the
result has taps in, then enlarged by exchanging it between lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ._bilinear import bilinear_tap, check_sizes, lerp
from ._maps import cell_and_tile, logits, sigmoid
from ._tuning import config

# A tile of the result, and the pixels in which it has taps: at least 2 x 2.
BLOCK_X, BLOCK_Y, SOURCE_X, SOURCE_Y = 128, 16, 64, 8
CONFIGS = (config(8, 1, BLOCK_X=BLOCK_X, BLOCK_Y=BLOCK_Y, SOURCE_X=SOURCE_X, SOURCE_Y=SOURCE_Y),)


@triton.jit
def owned_tile(out_width, out_height, own_x, own_y, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr):
    """A program's map, the place of its tile among those of all maps, its first column and row, and which of
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
    coarse_ptr,
    attention_ptr,
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
                coarse_ptr,
                attention_ptr,
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
            coarse_ptr,
            attention_ptr,
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
def own_probabilities(
    coarse_ptr,
    attention_ptr,
    coarse_height,
    coarse_width,
    side,
    height,
    width,
    out_height,
    out_width,
    own_y,
    own_x,
    HAS_ATTENTION: tl.constexpr,
    SAME: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    SOURCE_X: tl.constexpr,
    SOURCE_Y: tl.constexpr,
):
    """The result of `owned_tile`, and the program's `probabilities`; the arguments are those of `inputs`."""
    k, place, x, y, own = owned_tile(out_width, out_height, own_x, own_y, BLOCK_X, BLOCK_Y)
    p = probabilities(
        coarse_ptr,
        attention_ptr,
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
        HAS_ATTENTION,
        SAME,
        BLOCK_X,
        BLOCK_Y,
        SOURCE_X,
        SOURCE_Y,
    )
    return k, place, x, y, own, p


@triton.jit
def spread_x(index, LENGTH: tl.constexpr, OTHER: tl.constexpr):
    """Indices along the first dim, clamped to it, for every place along the other."""
    return tl.broadcast_to(tl.minimum(index, LENGTH - 1)[:, None], index.shape[0], OTHER)


@triton.jit
def spread_y(index, OTHER: tl.constexpr, LENGTH: tl.constexpr):
    """Indices along the second dim, clamped to it, for every place along the other."""
    return tl.broadcast_to(tl.minimum(index, LENGTH - 1)[None, :], OTHER, index.shape[0])


@dataclass(frozen=True)
class Inputs:
    """The arguments of a launch of a kernel around `own_probabilities`.

    Attributes:
        tensors: coarse logits and attention rows, each in one run of memory. Without attention the coarse
            logits are in both places.
        tiles: programs a map.
        sizes: the integer arguments, in their order.
        constants: HAS_ATTENTION and SAME.
    """

    tensors: tuple[Tensor, Tensor]
    tiles: int
    sizes: tuple[int, ...]
    constants: dict[str, bool]


def inputs(
    op: str,
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
) -> Inputs:
    """For the probabilities of [K, h, w] and [K, S, S] at ``out_size``, made at ``size``."""
    coarse = coarse_logits.contiguous()
    rows = coarse if attention is None else attention.contiguous()
    check_sizes(op, (coarse.shape[1:], size), (rows.shape[1:], size), (size, out_size))
    own = owned(size, out_size)
    return Inputs(
        (coarse, rows),
        triton.cdiv(out_size[0], own[0]) * triton.cdiv(out_size[1], own[1]),
        (*coarse.shape[1:], rows.shape[1], *size, *out_size, *own),
        {"HAS_ATTENTION": attention is not None, "SAME": tuple(size) == tuple(out_size)},
    )


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
