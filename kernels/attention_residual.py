"""The attention branch added to the mask branch like a ResNet shortcut (paper section 3.4), in one kernel.

A program takes a block of cells, 64 columns of the output and a band of grid rows. The dot products with the
grid cells beneath stay on the chip: a grid row is enlarged along x by picking from them, and two neighbours
are blended along y while the logits stream by. So the logits are read once and written once, and the
S^2 x S x S map never reaches memory. A band computes one grid row more than it has: the next one's first.

Backward, the S x S gradients of the maps are gathered, every output from its own window of inputs, and go on
as grid_attention's: B N^2 numbers in float32 are written and read between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._bilinear import bilinear_first, bilinear_part, bilinear_tap, check_sizes, mix, window
from ._launch import Aot, is_open, launch
from ._tuning import config, tuned
from ._vectors import check_features, factor, mode_of
from .grid_attention import grid_attention_bwd

_WIDTH = 64  # output columns of a program
_TIMED = 256  # cells that configurations are timed with in place: blocks of any configuration, and a full GPU
_COLUMNS = 8  # grid columns of a program that gathers

# More rows at a time compute fewer of them twice, but the more there are to pick from, the longer it takes.
_FWD_CONFIGS = (
    config(8, CELLS=16, ROWS=4, BLOCK_K=32),
    config(8, CELLS=32, ROWS=4, BLOCK_K=16),
    config(8, CELLS=32, ROWS=8, BLOCK_K=16),
)
_BWD_CONFIGS = (
    config(4, TILE=1024, ROWS=8),
    config(4, TILE=1024, ROWS=16),
    config(8, TILE=2048, ROWS=16),
)


@triton.jit
def _enlarged(products, row, low, high, weight, SPAN: tl.constexpr):
    """A grid row along x: [CELLS, WIDTH] picked from [CELLS, ROWS * SPAN]."""
    left = tl.gather(products, row * SPAN + low, 1)
    right = tl.gather(products, row * SPAN + high, 1)
    return mix(left, right, weight)


@tuned(_FWD_CONFIGS, key=("channels", "side", "height", "width", "PRECISION"))
@triton.jit(do_not_specialize=("side", "height"))
def _attention_residual_fwd_kernel(
    logits_ptr,
    features_ptr,
    out_ptr,
    scale,
    channels,
    side,
    height,
    width,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``out_ptr`` may be ``logits_ptr``: each number is read and written by one thread."""
    cells = side * side
    image = tl.program_id(2).to(tl.int64)
    strips = tl.cdiv(width, WIDTH)
    start, top = tl.program_id(0) % strips * WIDTH, tl.program_id(0) // strips * (ROWS - 1)
    x = start + tl.arange(0, WIDTH)
    low, high, weight = bilinear_tap(tl.minimum(x, width - 1), side, width)
    first = bilinear_tap(start, side, width)[0]

    # The products of a block of cells with ROWS x SPAN grid cells, those at the rim repeated.
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    j = tl.arange(0, ROWS * SPAN)
    at = tl.minimum(top + j // SPAN, side - 1) * side + tl.minimum(first + j % SPAN, side - 1)
    features_ptr += image * channels * cells
    products = tl.zeros((CELLS, ROWS * SPAN), tl.float32)
    for c in range(0, channels, BLOCK_K):
        channel = c + tl.arange(0, BLOCK_K)
        mine = features_ptr + channel[None, :] * cells + cell[:, None]
        mine = tl.load(mine, mask=(channel < channels)[None, :] & (cell < cells)[:, None], other=0.0)
        others = features_ptr + channel[:, None] * cells + at[None, :]
        others = tl.load(others, mask=(channel < channels)[:, None], other=0.0)
        products = tl.dot(
            factor(mine, PRECISION), factor(others, PRECISION), products, input_precision=PRECISION
        )
    products *= scale

    index = tl.zeros((CELLS, WIDTH), tl.int32)
    low, high, weight = index + (low - first)[None, :], index + (high - first)[None, :], weight[None, :]
    mask = (cell < cells)[:, None] & (x < width)[None, :]
    place = (image * cells + cell[:, None]) * height * width + x[None, :]
    above = _enlarged(products, 0, low, high, weight, SPAN)
    # The next line of logits is on its way while this one is written.
    last = bilinear_first(top + ROWS - 1, side, height)
    begin = bilinear_first(top, side, height)
    line = mask & (begin < last)
    following = tl.load(logits_ptr + place + begin * width, mask=line, eviction_policy="evict_first")
    for row in range(ROWS - 1):
        below = _enlarged(products, row + 1, low, high, weight, SPAN)
        end = bilinear_first(top + row + 1, side, height)
        for y in range(begin, end):
            value = following.to(tl.float32)
            line = mask & (y + 1 < last)
            following = tl.load(
                logits_ptr + place + (y + 1) * width, mask=line, eviction_policy="evict_first"
            )
            v = bilinear_tap(y, side, height)[2]
            value += mix(above, below, v)
            tl.store(out_ptr + place + y * width, value.to(out_ptr.dtype.element_ty), mask=mask)
        begin = end
        above = below


@tuned(_BWD_CONFIGS, key=("side", "height", "width"))
@triton.jit(do_not_specialize=("side", "height"))
def _attention_residual_bwd_kernel(
    grad_ptr,
    maps_ptr,
    side,
    height,
    width,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each grid cell gathers along y first, taps along x kept apart, which are added when its row is done."""
    CELLS: tl.constexpr = TILE // (COLUMNS * TAPS) if TILE > COLUMNS * TAPS else 1
    cells = side * side
    image = tl.program_id(2).to(tl.int64)
    strips = tl.cdiv(side, COLUMNS)
    j = tl.program_id(0) % strips * COLUMNS + tl.arange(0, COLUMNS)
    top = tl.program_id(0) // strips * ROWS
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)

    x = bilinear_first(j - 1, side, width)[:, None] + tl.arange(0, TAPS)[None, :]
    inside = (x < bilinear_first(j + 1, side, width)[:, None]) & (j < side)[:, None]
    low, high, weight = bilinear_tap(x, side, width)
    parts = tl.where(inside, bilinear_part(j[:, None], low, high, weight), 0.0)[None, :, :]
    mask = (cell < cells)[:, None, None] & inside[None, :, :]
    place = (image * cells + cell[:, None, None]) * height * width + x[None, :, :]
    written = (cell < cells)[:, None] & (j < side)[None, :]
    maps_ptr += (image * cells + cell[:, None]) * cells + j[None, :]

    this = tl.zeros((CELLS, COLUMNS, TAPS), tl.float32)
    for i in range(top - 1, tl.minimum(top + ROWS, side)):
        following = tl.zeros((CELLS, COLUMNS, TAPS), tl.float32)
        for y in range(bilinear_first(i, side, height), bilinear_first(i + 1, side, height)):
            v = bilinear_tap(y, side, height)[2]
            value = tl.load(grad_ptr + place + y * width, mask=mask, other=0.0).to(tl.float32)
            this += (1 - v) * value
            following += tl.where(v > 0, v * value, 0.0)  # what is not finite has no part of 0
        if i >= top:
            tl.store(maps_ptr + i * side, tl.sum(tl.where(parts > 0, this * parts, 0.0), 2), mask=written)
        this = following


def attention_residual(
    mask_logits: Tensor, grid_features: Tensor, scale: float, tf32: bool = False
) -> Tensor:
    """Mask logits [B, N, H, W] + the S x S maps of grid attention, enlarged bilinearly to H x W."""
    logits = mask_logits.contiguous()
    out = torch.empty_like(logits)
    _add(logits, grid_features, scale, tf32, out)
    return out


def attention_residual_(mask_logits: Tensor, grid_features: Tensor, scale: float, tf32: bool = False) -> None:
    """The same, written over the mask logits."""
    logits = mask_logits.contiguous()
    _add(logits, grid_features, scale, tf32, logits)
    if logits is mask_logits:
        # Autograd counts writes to a tensor and its views; what a kernel writes it would miss.
        mask_logits.narrow(0, 0, 0).zero_()
    else:
        mask_logits.copy_(logits)


def _add(logits: Tensor, grid_features: Tensor, scale: float, tf32: bool, out: Tensor) -> None:
    features = grid_features.contiguous()
    batch, channels, side, _ = features.shape
    height, width = logits.shape[2:]
    if logits.numel() == 0:
        return
    check_features("attention_residual", features)
    check_sizes("attention_residual", ((side, side), (height, width)))
    # The grid columns beneath the output columns of a program: with four rows of the grid at least, a dot
    # product has 16 columns.
    span = max(4, triton.next_power_of_2(min(side, triton.cdiv((_WIDTH - 1) * side, width) + 2)))

    def grid_of(cells: int, images: int) -> Callable[[dict[str, Any]], tuple[int, int, int]]:
        def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
            bands = triton.cdiv(side, meta["ROWS"] - 1)
            return triton.cdiv(width, _WIDTH) * bands, triton.cdiv(cells, meta["CELLS"]), images

        return grid

    given = scale, channels, side, height, width
    constants = {"WIDTH": _WIDTH, "SPAN": span, **mode_of(features, tf32)}
    kernel, cells = _attention_residual_fwd_kernel, side * side
    if out is logits and is_open(kernel, logits, features, out, *given, **constants):
        # Timed on a part of one image, into memory of its own: restoring all logits after each run would take
        # their size again, and most of the time.
        part = min(_TIMED, cells)
        scratch = logits.new_empty(part, height, width)
        launch(kernel, grid_of(part, 1), logits, features, scratch, *given, **constants)
    launch(kernel, grid_of(cells, batch), logits, features, out, *given, **constants)


def attention_residual_bwd(grad: Tensor, grid_features: Tensor, scale: float, tf32: bool = False) -> Tensor:
    """The gradient of the grid features; that of the mask logits is ``grad`` itself."""
    upstream = grad.contiguous()
    batch, cells, height, width = upstream.shape
    side = grid_features.shape[-1]
    maps = upstream.new_empty(batch, cells, side, side, dtype=torch.float32)
    if maps.numel() > 0:
        check_sizes("attention_residual", ((side, side), (height, width)))
        columns = min(_COLUMNS, triton.next_power_of_2(side))
        taps = triton.next_power_of_2(window(side, width))

        def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
            block = max(1, meta["TILE"] // (columns * taps))
            bands = triton.cdiv(side, meta["ROWS"])
            return triton.cdiv(side, columns) * bands, triton.cdiv(cells, block), batch

        constants = {"COLUMNS": columns, "TAPS": taps}
        launch(_attention_residual_bwd_kernel, grid, upstream, maps, side, height, width, **constants)
    return grid_attention_bwd(maps, grid_features, scale, None, tf32)


# At the sizes of the paper: 40 x 40 cells and 336 columns.
_TYPES = {
    "logits_ptr": "*T",
    "features_ptr": "*T",
    "out_ptr": "*T",
    "grad_ptr": "*T",
    "maps_ptr": "*fp32",
    "scale": "fp32",
}
_PAPER = {"WIDTH": _WIDTH, "SPAN": 16}
AOT = (
    Aot(_attention_residual_fwd_kernel, _TYPES, {**_PAPER, "PRECISION": "ieee"}, ("fp32",)),
    Aot(_attention_residual_fwd_kernel, _TYPES, {**_PAPER, "PRECISION": "tf32"}),
    Aot(_attention_residual_bwd_kernel, _TYPES, {"COLUMNS": _COLUMNS, "TAPS": 32}),
)
