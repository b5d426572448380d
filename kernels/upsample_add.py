"""Mask logits of chosen cells: both parts enlarged and added (docs/method.md, "Identities" step 2).

Forward: K H W logits are written once, which is the floor of memory; the inputs are small, and their taps, 8
loads a pixel, come from the first cache. 13 flops a pixel. Nothing else is stored.
Backward, for each input: K H W gradients are read and K h w written; some 40 flops a pixel, most of them for
shares of 0 (see `_adjoint.py`). Nothing else is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._adjoint import CONFIGS as ADJOINT
from ._adjoint import add_rows, division, gather_columns, outputs_of, owned_block, store_block
from ._bilinear import check_sizes
from ._launch import Aot, launch
from ._maps import cell_and_tile, logits
from ._tuning import config, tuned

_CONFIGS = (config(4, BLOCK_X=128, BLOCK_Y=8), config(4, BLOCK_X=64, BLOCK_Y=32))


@tuned(_CONFIGS, key=("height", "width", "HAS_ATTENTION"))
@triton.jit(do_not_specialize=("coarse_height", "coarse_width", "side", "height"))
def _upsample_add_fwd_kernel(
    coarse_ptr,
    attention_ptr,
    out_ptr,
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
    place = columns[:, None] + (k * height + rows)[None, :] * width
    inside = (columns < width)[:, None] & (rows < height)[None, :]
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)


@tuned(ADJOINT, key=("height", "width", "height_in", "width_in"))
@triton.jit(do_not_specialize=("height_in", "width_in", "height", "own", "most"))
def _upsample_add_bwd_kernel(
    grad_ptr,
    out_ptr,
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
    k, i, j, end_i, end_j = owned_block(height_in, width_in, own, BLOCK_I)
    first_x, last_x = outputs_of(j, end_j, width_in, width)
    first_y, last_y = outputs_of(i, end_i, height_in, height)
    result = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for chunk in range(first_x, last_x, BLOCK_X):
        xs = chunk + tl.arange(0, BLOCK_X)
        tile = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        for y in range(first_y, last_y, BLOCK_Y):
            ys = y + tl.arange(0, BLOCK_Y)
            inside = (ys < last_y)[:, None] & (xs < last_x)[None, :]
            place = (k * height + ys)[:, None] * width + xs[None, :]
            g = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
            tile = add_rows(tile, g, i, ys, height_in, height, BLOCK_I)
        result = gather_columns(tile, result, chunk, j, width_in, width, most, BLOCK_X)
    store_block(out_ptr, result, k, i, j, end_j, height_in, width_in)


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
    grid, own, most = division(count, (height_in, width_in), width)
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
        most,
    )
    return out


_TYPES = {"coarse_ptr": "*T", "attention_ptr": "*T", "grad_ptr": "*T", "out_ptr": "*T"}
AOT = (
    Aot(_upsample_add_fwd_kernel, _TYPES, {"HAS_ATTENTION": True}),
    Aot(_upsample_add_fwd_kernel, _TYPES, {"HAS_ATTENTION": False}),
    Aot(_upsample_add_bwd_kernel, _TYPES),
)
