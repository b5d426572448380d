"""Coarse logits to thresholded masks as bits, areas and maskness (docs/method.md, "Inference" steps 3 and 4).

One pass: H W / 8 bytes a mask are written, next to nothing. The floor is arithmetic: 25 flops, 8 loads and
one exponential a pixel, or for a third of the pixels where ``out_size`` is twice ``size``. Stored beside the
results: an area and a sum for each tile, which a second launch adds up in order.

A row of pixels begins anywhere in a word, so words are put together from 32 pixels of a row by atomic "or",
most of which set nothing and are left out: what comes out does not depend on the order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._bilinear import check_sizes
from ._launch import Aot, launch, tuned
from ._probability import CONFIGS, owned, owned_tile, probabilities

_SUMS = 256  # tiles that are added at a time


@tuned(CONFIGS, key=("out_height", "out_width"))
@triton.jit
def _mask_bits_fwd_kernel(
    coarse,
    attention,
    words,
    tile_areas,
    tile_sums,
    coarse_height,
    coarse_width,
    side,
    height,
    width,
    out_height,
    out_width,
    own_y,
    own_x,
    threshold,
    HAS_ATTENTION: tl.constexpr,
    SAME: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    SOURCE_X: tl.constexpr,
    SOURCE_Y: tl.constexpr,
):
    k, place, x, y, own = owned_tile(out_width, out_height, own_x, own_y, BLOCK_X, BLOCK_Y)
    p = probabilities(
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
        HAS_ATTENTION,
        SAME,
        BLOCK_X,
        BLOCK_Y,
        SOURCE_X,
        SOURCE_Y,
    )
    inside = own & (p > threshold)
    tl.store(tile_areas + place, tl.sum(inside.to(tl.int32)))
    tl.store(tile_sums + place, tl.sum(tl.where(inside, p, 0.0)))
    # 32 pixels of a row, from any bit of one word to the next.
    groups: tl.constexpr = BLOCK_X // 32
    bits = tl.reshape(inside.to(tl.int32), [groups, 32, BLOCK_Y]) << tl.arange(0, 32)[None, :, None]
    bits = tl.sum(bits, 1).to(tl.uint32, bitcast=True)
    rows = (y + tl.arange(0, BLOCK_Y)).to(tl.int64)
    first = rows[None, :] * out_width + x + 32 * tl.arange(0, groups)[:, None]
    shift = (first & 31).to(tl.uint32)
    low = bits << shift
    high = tl.where(shift > 0, bits >> ((32 - shift) & 31), 0)
    out = words + k * ((tl.cast(out_height, tl.int64) * out_width + 63) // 64 * 2) + (first >> 5)
    tl.atomic_or(out, low.to(tl.int32, bitcast=True), mask=low != 0, sem="relaxed")
    tl.atomic_or(out + 1, high.to(tl.int32, bitcast=True), mask=high != 0, sem="relaxed")


@triton.jit
def _mask_bits_sum_kernel(tile_areas, tile_sums, areas, maskness, tiles, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    area = tl.zeros([BLOCK], tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        area += tl.load(tile_areas + k * tiles + tile, mask=tile < tiles, other=0)
        total += tl.load(tile_sums + k * tiles + tile, mask=tile < tiles, other=0.0)
    area, total = tl.sum(area), tl.sum(total)
    tl.store(areas + k, area)
    # An empty mask has a maskness of 0, not 0 / 0.
    tl.store(maskness + k, total / tl.maximum(area, 1).to(tl.float32))


def mask_bits(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Words [K, ceil(H*W/64)], areas [K] and maskness [K] of m = p > threshold."""
    count, pixels = len(coarse_logits), out_size[0] * out_size[1]
    words = coarse_logits.new_zeros(count, (pixels + 63) // 64 * 2, dtype=torch.int32)
    areas = coarse_logits.new_empty(count, dtype=torch.int64)
    maskness = coarse_logits.new_empty(count, dtype=torch.float32)
    if count == 0:
        return words.view(torch.int64), areas, maskness
    coarse = coarse_logits.contiguous()
    rows = coarse if attention is None else attention.contiguous()
    check_sizes("mask_bits", (coarse.shape[1:], size), (rows.shape[1:], size), (size, out_size))
    own_y, own_x = owned(size, out_size)
    tiles = triton.cdiv(out_size[0], own_y) * triton.cdiv(out_size[1], own_x)
    tile_areas = areas.new_empty(count, tiles, dtype=torch.int32)
    tile_sums = maskness.new_empty(count, tiles)
    launch(
        _mask_bits_fwd_kernel,
        (count * tiles,),
        coarse,
        rows,
        words,
        tile_areas,
        tile_sums,
        coarse.shape[1],
        coarse.shape[2],
        rows.shape[1],
        *size,
        *out_size,
        own_y,
        own_x,
        threshold,
        HAS_ATTENTION=attention is not None,
        SAME=tuple(size) == tuple(out_size),
    )
    launch(_mask_bits_sum_kernel, (count,), tile_areas, tile_sums, areas, maskness, tiles, BLOCK=_SUMS)
    return words.view(torch.int64), areas, maskness


_TYPES = {
    "coarse": "*T",
    "attention": "*T",
    "words": "*i32",
    "tile_areas": "*i32",
    "tile_sums": "*fp32",
    "areas": "*i64",
    "maskness": "*fp32",
    "threshold": "fp32",
}
AOT = (
    *(
        Aot(_mask_bits_fwd_kernel, _TYPES, {"HAS_ATTENTION": given, "SAME": same})
        for given in (True, False)
        for same in (True, False)
    ),
    Aot(_mask_bits_sum_kernel, _TYPES, {"BLOCK": _SUMS}, ("fp32",)),
)
