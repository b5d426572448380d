"""Dice loss of chosen cells (docs/method.md, "Losses" step 2) from coarse logits and attention rows.

Forward: K H W target bytes are read and three sums a row written, in two stages whose order is fixed. Some 25
flops, 8 loads and one exponential a pixel: arithmetic is the floor, not memory. Stored: 12 bytes for each
part of a row.
Backward, for each input: the same for every pixel, and again at the edges of blocks (a tenth), then the
transpose as in `upsample_add`. Nothing is stored but the gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._adjoint import CONFIGS as ADJOINT
from ._adjoint import add_rows, division, gather_columns, outputs_of, owned_block, store_block
from ._bilinear import check_sizes
from ._launch import Aot, launch
from ._maps import cell_and_tile, logits
from ._tuning import tuned

_X, _MOST_PARTS = 128, 64
_ROWS = {True: 4, False: 8}  # of a tile, with attention and without: as many as the registers hold
_PROGRAMS = 2048  # that fill a GPU: a few cells are divided into parts


@triton.jit(do_not_specialize=("coarse_height", "coarse_width", "side", "height", "parts"))
def _dice_loss_fwd_kernel(
    coarse_ptr,
    attention_ptr,
    targets_ptr,
    partial_ptr,
    coarse_height,
    coarse_width,
    side,
    height,
    width,
    parts,
    HAS_ATTENTION: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
):
    k, part = cell_and_tile(parts)
    tiles_x, tiles_y = tl.cdiv(width, BLOCK_X), tl.cdiv(height, BLOCK_Y)
    # A sum for each pixel of a tile: how Triton lays a tile on threads depends on the width, and adding up
    # within the loop would exchange numbers between them, with barriers.
    overlap = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
    squares = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
    pixels = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
    for tile in range(part, tiles_x * tiles_y, parts):
        columns = tile % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
        rows = tile // tiles_x * BLOCK_Y + tl.arange(0, BLOCK_Y)
        inside = (columns < width)[:, None] & (rows < height)[None, :]
        place = columns[:, None] + (k * height + rows)[None, :] * width
        t = tl.load(targets_ptr + place, mask=inside, other=0) != 0
        z = logits(
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
        p = tl.where(inside, tl.sigmoid(z), 0.0)
        overlap += tl.where(t, p, 0.0)
        squares += p * p
        pixels += t.to(tl.float32)
    out = partial_ptr + (k * parts + part) * 3
    tl.store(out, tl.sum(overlap))
    tl.store(out + 1, tl.sum(squares))
    tl.store(out + 2, tl.sum(pixels))


@triton.jit(do_not_specialize=("parts",))
def _dice_loss_sum_kernel(partial_ptr, loss_ptr, sums_ptr, parts, eps, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK)
    place = partial_ptr + (k * parts + part) * 3
    overlap = tl.sum(tl.load(place, mask=part < parts, other=0.0))
    squares = tl.sum(tl.load(place + 1, mask=part < parts, other=0.0))
    pixels = tl.sum(tl.load(place + 2, mask=part < parts, other=0.0))
    total = (squares + eps) + (pixels + eps)
    tl.store(sums_ptr + 2 * k, overlap)
    tl.store(sums_ptr + 2 * k + 1, total)
    tl.store(loss_ptr + k, 1.0 - 2.0 * overlap / total)


@tuned(ADJOINT, key=("height", "width", "height_in", "width_in", "HAS_ATTENTION"))
@triton.jit(
    do_not_specialize=(
        "coarse_height",
        "coarse_width",
        "side",
        "height_in",
        "width_in",
        "height",
        "own",
        "most",
    )
)
def _dice_loss_bwd_kernel(
    grad_ptr,
    coarse_ptr,
    attention_ptr,
    targets_ptr,
    sums_ptr,
    out_ptr,
    coarse_height,
    coarse_width,
    side,
    height_in,
    width_in,
    height,
    width,
    own,
    most,
    HAS_ATTENTION: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    k, i, j, end_i, end_j = owned_block(height_in, width_in, own, BLOCK_I)
    first_x, last_x = outputs_of(j, end_j, width_in, width)
    first_y, last_y = outputs_of(i, end_i, height_in, height)
    overlap, total = tl.load(sums_ptr + 2 * k), tl.load(sums_ptr + 2 * k + 1)
    outer = tl.load(grad_ptr + k)
    a, b = outer * (4.0 * overlap / (total * total)), outer * (2.0 / total)
    result = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for chunk in range(first_x, last_x, BLOCK_X):
        xs = chunk + tl.arange(0, BLOCK_X)
        tile = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        for y in range(first_y, last_y, BLOCK_Y):
            ys = y + tl.arange(0, BLOCK_Y)
            inside = (xs < last_x)[:, None] & (ys < last_y)[None, :]
            place = xs[:, None] + (k * height + ys)[None, :] * width
            t = tl.load(targets_ptr + place, mask=inside, other=0) != 0
            z = logits(
                coarse_ptr,
                attention_ptr,
                k,
                xs,
                ys,
                coarse_width,
                coarse_height,
                side,
                width,
                height,
                HAS_ATTENTION,
            )
            p = tl.sigmoid(z)
            g = tl.where(t, a * p - b, a * p) * p * (1.0 - p)
            g = tl.trans(tl.where(inside, g, 0.0))
            tile = add_rows(tile, g, i, ys, height_in, height, BLOCK_I)
        result = gather_columns(tile, result, chunk, j, width_in, width, most, BLOCK_X)
    store_block(out_ptr, result, k, i, j, end_j, height_in, width_in)


def dice_loss(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Losses [K], and of each row what the gradient needs, [K, 2]: Sum(p t) and the denominator."""
    count, height, width = targets.shape
    loss, sums = (
        coarse_logits.new_empty(count, dtype=torch.float32),
        coarse_logits.new_empty(count, 2, dtype=torch.float32),
    )
    if count == 0:
        return loss, sums
    coarse, rows = _inputs(coarse_logits, attention, targets)
    block_y = _ROWS[attention is not None]
    tiles = triton.cdiv(width, _X) * triton.cdiv(height, block_y)
    parts = max(1, min(tiles, _MOST_PARTS, _PROGRAMS // count))
    partial = loss.new_empty(count, parts, 3)
    launch(
        _dice_loss_fwd_kernel,
        (count * parts,),
        coarse,
        rows,
        targets.contiguous().view(torch.uint8),
        partial,
        coarse.shape[1],
        coarse.shape[2],
        rows.shape[1],
        height,
        width,
        parts,
        HAS_ATTENTION=attention is not None,
        BLOCK_X=_X,
        BLOCK_Y=block_y,
    )
    launch(_dice_loss_sum_kernel, (count,), partial, loss, sums, parts, eps, BLOCK=_MOST_PARTS)
    return loss, sums


def dice_loss_bwd(
    grad: Tensor,
    coarse_logits: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    sums: Tensor,
    coarse_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[Tensor, Tensor]:
    """DL/dp = -2 t / total + 4 overlap p / total^2, through the sigmoid and both enlargements."""
    coarse, rows = _inputs(coarse_logits, attention, targets)
    given = (grad.contiguous(), coarse, rows, targets.contiguous().view(torch.uint8), sums.contiguous())
    nothing = (len(coarse), 0, 0)
    for_coarse = coarse.new_empty(coarse.shape if coarse_wanted else nothing)
    for_rows = coarse.new_empty(nothing if attention is None or not attention_wanted else attention.shape)
    for out in (for_coarse, for_rows):
        _adjoint(given, out, attention is not None)
    return for_coarse, for_rows


def _adjoint(given: tuple[Tensor, ...], out: Tensor, has_attention: bool) -> None:
    if out.numel() == 0:
        return
    _, coarse, rows, targets, _ = given
    _, height_in, width_in = out.shape
    height, width = targets.shape[1:]
    grid, own, most = division(len(out), (height_in, width_in), width)
    launch(
        _dice_loss_bwd_kernel,
        grid,
        *given,
        out,
        coarse.shape[1],
        coarse.shape[2],
        rows.shape[1],
        height_in,
        width_in,
        height,
        width,
        own,
        most,
        HAS_ATTENTION=has_attention,
    )


def _inputs(coarse_logits: Tensor, attention: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """In contiguous memory; without attention the coarse logits replace its rows."""
    coarse = coarse_logits.contiguous()
    rows = coarse if attention is None else attention.contiguous()
    size = targets.shape[1:]
    check_sizes("dice_loss", (coarse.shape[1:], size), (rows.shape[1:], size))
    return coarse, rows


_TYPES = {
    "coarse_ptr": "*T",
    "attention_ptr": "*T",
    "out_ptr": "*T",
    "targets_ptr": "*u8",
    "grad_ptr": "*fp32",
    "partial_ptr": "*fp32",
    "loss_ptr": "*fp32",
    "sums_ptr": "*fp32",
    "eps": "fp32",
}
AOT = (
    *(
        Aot(_dice_loss_fwd_kernel, _TYPES, {"HAS_ATTENTION": given, "BLOCK_X": _X, "BLOCK_Y": rows})
        for given, rows in _ROWS.items()
    ),
    Aot(_dice_loss_sum_kernel, _TYPES, {"BLOCK": _MOST_PARTS}, ("fp32",)),
    *(Aot(_dice_loss_bwd_kernel, _TYPES, {"HAS_ATTENTION": given}) for given in (True, False)),
)
