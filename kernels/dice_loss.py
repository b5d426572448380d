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

from ._bilinear import ADJOINT_CONFIGS, bilinear_first, check_sizes, most_outputs, owned_columns
from ._launch import Aot, launch, tuned
from ._maps import add_rows, cell_and_tile, gather_columns, logits

_X, _MOST_PARTS = 128, 64
_ROWS = {True: 4, False: 8}  # of a tile, with attention and without: as many as registers hold
_PROGRAMS = 2048  # that fill a GPU: few cells are divided into parts


@triton.jit
def _dice_loss_fwd_kernel(
    coarse,
    attention,
    targets,
    partial,
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
    overlap = tl.zeros([BLOCK_X], tl.float32)
    squares = tl.zeros([BLOCK_X], tl.float32)
    pixels = tl.zeros([BLOCK_X], tl.float32)
    for tile in range(part, tiles_x * tiles_y, parts):
        columns = tile % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
        rows = tile // tiles_x * BLOCK_Y + tl.arange(0, BLOCK_Y)
        inside = (columns < width)[:, None] & (rows < height)[None, :]
        place = columns[:, None] + (k * height + rows)[None, :] * width
        t = tl.load(targets + place, mask=inside, other=0) != 0
        z = logits(
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
        p = tl.where(inside, tl.sigmoid(z), 0.0)
        # A thread holds a column of the tile: these sums are its own.
        overlap += tl.sum(tl.where(t, p, 0.0), 1)
        squares += tl.sum(p * p, 1)
        pixels += tl.sum(t.to(tl.float32), 1)
    out = partial + (k * parts + part) * 3
    tl.store(out, tl.sum(overlap))
    tl.store(out + 1, tl.sum(squares))
    tl.store(out + 2, tl.sum(pixels))


@triton.jit
def _dice_loss_sum_kernel(partial, loss, sums, parts, eps, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK)
    place = partial + (k * parts + part) * 3
    overlap = tl.sum(tl.load(place, mask=part < parts, other=0.0))
    squares = tl.sum(tl.load(place + 1, mask=part < parts, other=0.0))
    pixels = tl.sum(tl.load(place + 2, mask=part < parts, other=0.0))
    total = (squares + eps) + (pixels + eps)
    tl.store(sums + 2 * k, overlap)
    tl.store(sums + 2 * k + 1, total)
    tl.store(loss + k, 1.0 - 2.0 * overlap / total)


@tuned(ADJOINT_CONFIGS, key=("height", "width", "height_in", "width_in", "HAS_ATTENTION"))
@triton.jit
def _dice_loss_bwd_kernel(
    grad,
    coarse,
    attention,
    targets,
    sums,
    out,
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
    blocks_x = tl.cdiv(width_in, own)
    k, block = cell_and_tile(blocks_x * tl.cdiv(height_in, BLOCK_I))
    i, j = block // blocks_x * BLOCK_I, block % blocks_x * own
    rows, columns = i + tl.arange(0, BLOCK_I), j + tl.arange(0, BLOCK_J)
    end = tl.minimum(j + own, width_in)
    last_x, last_y = bilinear_first(end, width_in, width), bilinear_first(i + BLOCK_I, height_in, height)
    overlap, total = tl.load(sums + 2 * k), tl.load(sums + 2 * k + 1)
    outer = tl.load(grad + k)
    a, b = outer * (4.0 * overlap / (total * total)), outer * (2.0 / total)
    result = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for chunk in range(bilinear_first(j - 1, width_in, width), last_x, BLOCK_X):
        xs = chunk + tl.arange(0, BLOCK_X)
        tile = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        for y in range(bilinear_first(i - 1, height_in, height), last_y, BLOCK_Y):
            ys = y + tl.arange(0, BLOCK_Y)
            inside = (xs < last_x)[:, None] & (ys < last_y)[None, :]
            place = xs[:, None] + (k * height + ys)[None, :] * width
            t = tl.load(targets + place, mask=inside, other=0) != 0
            z = logits(
                coarse, attention, k, xs, ys, coarse_width, coarse_height, side, width, height, HAS_ATTENTION
            )
            p = tl.sigmoid(z)
            g = (a * p - tl.where(t, b, 0.0)) * p * (1.0 - p)
            g = tl.trans(tl.where(inside, g, 0.0))
            tile = add_rows(tile, g, rows, ys, height_in, height)
        result = gather_columns(tile, result, chunk, columns, width_in, width, most, BLOCK_X)
    place = (k * height_in + rows)[:, None] * width_in + columns[None, :]
    inside = (rows < height_in)[:, None] & (columns < end)[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


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
    grad: Tensor, coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """DL/dp = -2 t / total + 4 overlap p / total^2, through the sigmoid and both enlargements."""
    coarse, rows = _inputs(coarse_logits, attention, targets)
    given = (grad.contiguous(), coarse, rows, targets.contiguous().view(torch.uint8), sums.contiguous())
    for_coarse = coarse.new_empty(coarse.shape)
    for_rows = coarse.new_empty((len(coarse), 0, 0) if attention is None else attention.shape)
    for out in (for_coarse, for_rows):
        _adjoint(given, out, attention is not None)
    return for_coarse, for_rows


def _adjoint(given: tuple[Tensor, ...], out: Tensor, has_attention: bool) -> None:
    if out.numel() == 0:
        return
    _, coarse, rows, targets, _ = given
    _, height_in, width_in = out.shape
    height, width = targets.shape[1:]
    own = owned_columns(width_in, width)

    def grid(meta):
        return (len(out) * triton.cdiv(height_in, meta["BLOCK_I"]) * triton.cdiv(width_in, own),)

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
        most_outputs(width_in, width),
        HAS_ATTENTION=has_attention,
    )


def _inputs(coarse_logits: Tensor, attention: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """In one run of memory; coarse logits stand for attention rows that there are none of."""
    coarse = coarse_logits.contiguous()
    rows = coarse if attention is None else attention.contiguous()
    size = targets.shape[1:]
    check_sizes("dice_loss", (coarse.shape[1:], size), (rows.shape[1:], size))
    return coarse, rows


_TYPES = {
    "coarse": "*T",
    "attention": "*T",
    "out": "*T",
    "targets": "*u8",
    "grad": "*fp32",
    "partial": "*fp32",
    "loss": "*fp32",
    "sums": "*fp32",
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
