"""Intersection over union of masks, every pair, from bits.

Each mask is packed (where it is not already) and counted; then shared bits are counted in tiles of pairs, as
in `matrix_nms`, for half of the pairs where masks meet themselves. Bytes: the masks once, 4 n m written. The
floor is the counting of bits, 2 for 96 pixels of a pair. Stored beside the result: words and areas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._bits import ROW, pack_row, rows_of_words, shared_bits
from ._launch import Aot, launch
from ._tuning import config, tuned

_BLOCK = 16
_PAIRS = (config(8, 1, BLOCK=_BLOCK, BLOCK_W=32),)


@triton.jit
def _mask_iou_pack_kernel(
    masks_ptr, words_ptr, areas_ptr, pixels, width, PACK: tl.constexpr, ROW: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64)
    tl.store(areas_ptr + i, pack_row(masks_ptr, words_ptr, i, pixels, width, PACK, ROW))


@triton.jit
def _quotient(a, b):
    """a / b rounded once, also for counts from 2^24 on, which float32 does not represent.

    Newton steps in float64, since the division is a function call, which spills registers.
    """
    inverse = (1.0 / b.to(tl.float32)).to(tl.float64)
    a, b = a.to(tl.float64), b.to(tl.float64)
    inverse = tl.fma(tl.fma(-inverse, b, 1.0), inverse, inverse)
    near = a * inverse
    return tl.fma(tl.fma(-near, b, a), inverse, near).to(tl.float32)


@tuned(_PAIRS, key=("width",))
@triton.jit(do_not_specialize=("count", "other_count"))
def _mask_iou_fwd_kernel(
    words_ptr,
    others_ptr,
    areas_ptr,
    other_areas_ptr,
    out_ptr,
    count,
    other_count,
    width,
    other_width,
    two,
    SAME: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    tiles_x = tl.cdiv(other_count, BLOCK)
    tile_i, tile_j = tl.program_id(0) // tiles_x, tl.program_id(0) % tiles_x
    # For masks with themselves the upper half is used for both.
    if (tile_i <= tile_j) | (not SAME):
        i, j = tile_i * BLOCK + tl.arange(0, BLOCK), tile_j * BLOCK + tl.arange(0, BLOCK)
        left, right = tl.where(i < count, i, -1), tl.where(j < other_count, j, -1)
        end = tl.minimum(width, other_width)
        both = shared_bits(
            words_ptr, others_ptr, left, right, width, other_width, 0, end, two, BLOCK, BLOCK_W
        )
        area = tl.load(areas_ptr + i, mask=i < count, other=0).to(tl.int64)
        other = tl.load(other_areas_ptr + j, mask=j < other_count, other=0).to(tl.int64)
        # Two empty masks have a union of 0: their IoU is 0, not 0 / 0.
        union = tl.maximum(area[:, None] + other[None, :] - both, 1)
        iou = _quotient(both, union)
        inside = (i < count)[:, None] & (j < other_count)[None, :]
        i, j = i.to(tl.int64)[:, None], j.to(tl.int64)[None, :]
        tl.store(out_ptr + i * other_count + j, iou, mask=inside)
        if SAME:
            tl.store(out_ptr + j * other_count + i, iou, mask=inside)


def mask_iou(masks: Tensor, others: Tensor | None) -> Tensor:
    """IoU of every pair, float32 [n, m]; ``others`` None stands for ``masks``.

    Both are bool or uint8 [n, P], or int64 words [n, W] whose spare bits are zero.
    """
    count, other_count = len(masks), len(masks if others is None else others)
    out = masks.new_empty(count, other_count, dtype=torch.float32)
    if out.numel() == 0:
        return out
    words, areas = _packed(masks)
    other_words, other_areas = (words, areas) if others is None else _packed(others)
    launch(
        _mask_iou_fwd_kernel,
        (triton.cdiv(count, _BLOCK) * triton.cdiv(other_count, _BLOCK),),
        words,
        other_words,
        areas,
        other_areas,
        out,
        count,
        other_count,
        words.shape[1],
        other_words.shape[1],
        2,
        SAME=others is None,
    )
    return out


def _packed(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Words int32 [n, W] and areas int32 [n]."""
    pixels_of, words, pixels, pack = rows_of_words(masks)
    areas = words.new_empty(len(masks))
    given = (pixels_of, words, areas, pixels, words.shape[1])
    launch(_mask_iou_pack_kernel, (len(masks),), *given, PACK=pack, ROW=ROW)
    return words, areas


_TYPES = {
    "masks_ptr": "*u8",
    "words_ptr": "*i32",
    "others_ptr": "*i32",
    "areas_ptr": "*i32",
    "other_areas_ptr": "*i32",
    "out_ptr": "*fp32",
}
AOT = (
    *(Aot(_mask_iou_pack_kernel, _TYPES, {"PACK": pack, "ROW": ROW}, ("fp32",)) for pack in (True, False)),
    *(Aot(_mask_iou_fwd_kernel, _TYPES, {"SAME": same}, ("fp32",)) for same in (True, False)),
)
