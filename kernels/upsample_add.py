"""Mask logits of chosen cells: both parts enlarged and added (docs/method.md, "Identities" step 2).

Forward: K H W logits are written once, which is the floor of memory; the inputs are small, and their taps, 8
loads a pixel, come from the first cache. 13 flops a pixel. Nothing else is stored.
Backward, for each input: K H W gradients are read and K h w written; some 40 flops a pixel, most of them for
shares of 0 (see `_bilinear.py`). Nothing else is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._bilinear import ADJOINT_CONFIGS, bilinear_first, check_sizes, most_outputs, owned_columns
from ._launch import Aot, config, launch, tuned
from ._maps import add_rows, cell_and_tile, gather_columns, logits

_CONFIGS = (config(4, BLOCK_X=128, BLOCK_Y=8), config(4, BLOCK_X=64, BLOCK_Y=32))


@tuned(_CONFIGS, key=("height", "width", "HAS_ATTENTION"))
@triton.jit
def _upsample_add_fwd_kernel(
    coarse,
    attention,
    out,
    coarse_height,
    coarse_width,
    side,
    height,
    width,
    HAS_ATTENTION: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
):
    tiles_x = tl.cdiv(width, BLOCK_X)
    k, tile = cell_and_tile(tiles_x * tl.cdiv(height, BLOCK_Y))
    columns = tile % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
    rows = tile // tiles_x * BLOCK_Y + tl.arange(0, BLOCK_Y)
    value = logits(
        coarse, attention, k, columns, rows, coarse_width, coarse_height, side, width, height, HAS_ATTENTION
    )
    place = columns[:, None] + (k * height + rows)[None, :] * width
    inside = (columns < width)[:, None] & (rows < height)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@tuned(ADJOINT_CONFIGS, key=("height", "width", "height_in", "width_in"))
@triton.jit
def _upsample_add_bwd_kernel(
    grad,
    out,
    height_in,
    width_in,
    height,
    width,
    own,
    most,
    BLOCK_I: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    blocks_x = tl.cdiv(width_in, own)
    k, block = cell_and_tile(blocks_x * tl.cdiv(height_in, BLOCK_I))
    i, j = block // blocks_x * BLOCK_I, block % blocks_x * own
    rows, columns = i + tl.arange(0, BLOCK_I), j + tl.arange(0, BLOCK_J)
    end = tl.minimum(j + own, width_in)
    last_x, last_y = bilinear_first(end, width_in, width), bilinear_first(i + BLOCK_I, height_in, height)
    result = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for chunk in range(bilinear_first(j - 1, width_in, width), last_x, BLOCK_X):
        xs = chunk + tl.arange(0, BLOCK_X)
        tile = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        for y in range(bilinear_first(i - 1, height_in, height), last_y, BLOCK_Y):
            ys = y + tl.arange(0, BLOCK_Y)
            inside = (ys < last_y)[:, None] & (xs < last_x)[None, :]
            place = (k * height + ys)[:, None] * width + xs[None, :]
            g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
            tile = add_rows(tile, g, rows, ys, height_in, height)
        result = gather_columns(tile, result, chunk, columns, width_in, width, most, BLOCK_X)
    place = (k * height_in + rows)[:, None] * width_in + columns[None, :]
    inside = (rows < height_in)[:, None] & (columns < end)[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


def upsample_add(coarse_logits: Tensor, attention: Tensor | None, size: Sequence[int]) -> Tensor:
    """O_k = up(coarse_k) + up(attention_k): [K, h, w] and [K, S, S] to [K, *size]."""
    count, coarse_height, coarse_width = coarse_logits.shape
    height, width = size
    out = coarse_logits.new_empty(count, height, width)
    if count == 0:
        return out
    coarse = coarse_logits.contiguous()
    rows = coarse if attention is None else attention.contiguous()
    check_sizes("upsample_add", (coarse.shape[1:], size), (rows.shape[1:], size))

    def grid(meta):
        return (count * triton.cdiv(height, meta["BLOCK_Y"]) * triton.cdiv(width, meta["BLOCK_X"]),)

    launch(
        _upsample_add_fwd_kernel,
        grid,
        coarse,
        rows,
        out,
        coarse_height,
        coarse_width,
        rows.shape[1],
        height,
        width,
        HAS_ATTENTION=attention is not None,
    )
    return out


def upsample_add_bwd(
    grad: Tensor, coarse_size: Sequence[int], attention_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs; ``attention_size`` (0, 0) stands for no attention."""
    grad = grad.contiguous()
    return _adjoint(grad, coarse_size), _adjoint(grad, attention_size)


def _adjoint(grad: Tensor, size: Sequence[int]) -> Tensor:
    count, height, width = grad.shape
    height_in, width_in = size
    out = grad.new_empty(count, height_in, width_in)
    if count == 0 or height_in == 0:
        return out
    own = owned_columns(width_in, width)

    def grid(meta):
        return (count * triton.cdiv(height_in, meta["BLOCK_I"]) * triton.cdiv(width_in, own),)

    launch(
        _upsample_add_bwd_kernel,
        grid,
        grad,
        out,
        height_in,
        width_in,
        height,
        width,
        own,
        most_outputs(width_in, width),
    )
    return out


_TYPES = {"coarse": "*T", "attention": "*T", "grad": "*T", "out": "*T"}
AOT = (
    Aot(_upsample_add_fwd_kernel, _TYPES, {"HAS_ATTENTION": True}),
    Aot(_upsample_add_fwd_kernel, _TYPES, {"HAS_ATTENTION": False}),
    Aot(_upsample_add_bwd_kernel, _TYPES),
)
