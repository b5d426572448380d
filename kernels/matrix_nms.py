"""Matrix NMS (docs/method.md, "Matrix NMS") from pixels or bits: launches of fixed shape, no host sync.

1. Each mask is packed into bits (where it is not already), counted, and finds its place: by label, best
   first.
2. Of each tile of pairs with two masks of one label, the bits that they share. That is n^2 / 2 pairs of P /
   32 words; the floor is the counting of bits, 16 words a cycle on each multiprocessor, of which two thirds
   are left (see `_bits.py`): 0.18 G counts for 500 masks of 200 x 336 of one label.
3. The worst overlap of each mask with a better one.
4. The decay of each mask.

Bytes: the masks once, n P as pixels, of which n P / 8 are written and held by the second cache, and 4 for
each pair. Of these `_STRIP` columns are stored at a time: what a strip needs of better masks before it steps
2 to 4 have left in 4 bytes a mask. So memory grows with n and not with its square, and no pair is counted
twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._bits import ROW, pack_row, rows_of_words, shared_bits
from ._launch import Aot, launch
from ._tuning import config, tuned

_BLOCK, _BLOCK_W = 16, 32  # masks and words of a tile of pairs
_PAIRS = (config(8, 1, BLOCK=_BLOCK, BLOCK_W=_BLOCK_W),)
_STRIP = 1024  # columns of pairs that are stored at a time
_PROGRAMS, _MOST_PARTS = 1536, 8  # a few masks are divided into parts, so that they fill a GPU
_SCORES = 1024  # that a program searches in one step
_I, _J = 64, 16  # a tile of pairs once they are counted


@triton.jit
def _better(other, j, score, i):
    """Whether mask ``j`` comes before mask ``i``: the higher score, then the lower index; NaN last."""
    before_nan = (other == other) | (j < i)
    return tl.where(score != score, before_nan, (other > score) | ((other == score) & (j < i)))


@triton.jit(do_not_specialize=("count",))
def _matrix_nms_sort_kernel(
    masks_ptr,
    words_ptr,
    labels_ptr,
    scores_ptr,
    order_ptr,
    areas_ptr,
    sorted_labels_ptr,
    count,
    pixels,
    width,
    PACK: tl.constexpr,
    ROW: tl.constexpr,
    SCORES: tl.constexpr,
):
    i = tl.program_id(0)
    area = pack_row(masks_ptr, words_ptr, i.to(tl.int64), pixels, width, PACK, ROW)
    label, score = tl.load(labels_ptr + i), tl.load(scores_ptr + i).to(tl.float32)
    before = tl.zeros([SCORES], tl.int32)
    for start in range(0, count, SCORES):
        j = start + tl.arange(0, SCORES)
        other_label = tl.load(labels_ptr + j, mask=j < count, other=0)
        other = tl.load(scores_ptr + j, mask=j < count, other=0.0).to(tl.float32)
        first = (other_label < label) | ((other_label == label) & _better(other, j, score, i))
        before += (first & (j < count)).to(tl.int32)
    place = tl.sum(before)
    tl.store(order_ptr + place, i)
    tl.store(areas_ptr + place, area)
    tl.store(sorted_labels_ptr + place, label)


@tuned(_PAIRS, key=("width",))
@triton.jit(do_not_specialize=("count", "strip", "columns"))
def _matrix_nms_pairs_kernel(
    words_ptr,
    order_ptr,
    labels_ptr,
    pairs_ptr,
    count,
    width,
    strip,
    columns,
    words_of_part,
    two,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    tiles_x = tl.cdiv(columns, BLOCK)
    first_i, first_j = tile // tiles_x * BLOCK, strip + tile % tiles_x * BLOCK
    # Labels are sorted: two tiles have one in common if the last of the first is the first of the last.
    last = tl.load(labels_ptr + tl.minimum(first_i + BLOCK, count) - 1)
    if (first_i <= first_j) & (last >= tl.load(labels_ptr + first_j)):
        i, j = first_i + tl.arange(0, BLOCK), first_j + tl.arange(0, BLOCK)
        left = tl.load(order_ptr + i, mask=i < count, other=-1)
        right = tl.load(order_ptr + j, mask=j < count, other=-1)
        begin = part * words_of_part
        end = tl.minimum(begin + words_of_part, width)
        both = shared_bits(words_ptr, words_ptr, left, right, width, width, begin, end, two, BLOCK, BLOCK_W)
        row = pairs_ptr + (part * count + i.to(tl.int64))[:, None] * columns
        tl.store(row + (j - strip)[None, :], both, mask=(i < count)[:, None] & (j < strip + columns)[None, :])


@triton.jit
def _overlaps(pairs_ptr, labels_ptr, areas_ptr, i, j, label_j, area_j, count, strip, columns, parts):
    """d_ij [I, J]: the IoU of masks of one label, the better one first; else 0."""
    binds = (i[:, None] < j[None, :]) & (j < strip + columns)[None, :]
    binds = binds & (tl.load(labels_ptr + i, mask=i < count, other=0)[:, None] == label_j[None, :])
    both = tl.zeros([i.shape[0], j.shape[0]], tl.int64)
    for part in range(parts):
        row = pairs_ptr + (part * count + i.to(tl.int64))[:, None] * columns
        both += tl.load(row + (j - strip)[None, :], mask=binds, other=0)
    union = tl.load(areas_ptr + i, mask=i < count, other=0)[:, None].to(tl.int64) + area_j[None, :] - both
    # Rounded once, so that identical masks overlap by exactly 1; the IoU of two empty masks is 0.
    return tl.div_rn(both.to(tl.float32), tl.maximum(union, 1).to(tl.float32))


@triton.jit(do_not_specialize=("count", "strip", "columns", "parts"))
def _matrix_nms_worst_kernel(
    pairs_ptr,
    labels_ptr,
    areas_ptr,
    worst_ptr,
    count,
    strip,
    columns,
    parts,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """c_j: the largest overlap with a better mask."""
    first = strip + tl.program_id(0) * BLOCK_J
    j = first + tl.arange(0, BLOCK_J)
    inside = j < strip + columns
    label, area = tl.load(labels_ptr + j, mask=inside, other=0), tl.load(areas_ptr + j, mask=inside, other=0)
    lowest = tl.load(labels_ptr + first)
    most = tl.zeros([BLOCK_J], tl.float32)
    for start in range(0, tl.minimum(first + BLOCK_J, count), BLOCK_I):
        if tl.load(labels_ptr + tl.minimum(start + BLOCK_I, count) - 1) >= lowest:
            i = start + tl.arange(0, BLOCK_I)
            overlap = _overlaps(
                pairs_ptr, labels_ptr, areas_ptr, i, j, label, area, count, strip, columns, parts
            )
            most = tl.maximum(most, tl.max(overlap, 0))
    tl.store(worst_ptr + j, most, mask=inside)


@triton.jit(do_not_specialize=("count", "strip", "columns", "parts"))
def _matrix_nms_decay_kernel(
    pairs_ptr,
    labels_ptr,
    areas_ptr,
    worst_ptr,
    order_ptr,
    scores_ptr,
    decayed_ptr,
    decay_ptr,
    sigma,
    count,
    strip,
    columns,
    parts,
    GAUSSIAN: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    first = strip + tl.program_id(0) * BLOCK_J
    j = first + tl.arange(0, BLOCK_J)
    inside = j < strip + columns
    label, area = tl.load(labels_ptr + j, mask=inside, other=0), tl.load(areas_ptr + j, mask=inside, other=0)
    lowest = tl.load(labels_ptr + first)
    # An overlap of 0 decays no score with either kernel: pairs that do not count need no mask.
    least = tl.full([BLOCK_J], 0.0 if GAUSSIAN else 1.0, tl.float32)
    for start in range(0, tl.minimum(first + BLOCK_J, count), BLOCK_I):
        if tl.load(labels_ptr + tl.minimum(start + BLOCK_I, count) - 1) >= lowest:
            i = start + tl.arange(0, BLOCK_I)
            d = _overlaps(pairs_ptr, labels_ptr, areas_ptr, i, j, label, area, count, strip, columns, parts)
            # Masks that this strip does not need may not have been written.
            c = tl.load(worst_ptr + i, mask=i < strip + columns, other=0.0)[:, None]
            if GAUSSIAN:
                bound = c * c - d * d
            else:
                # A mask with an identical one before it does not decay others: that one does.
                bound = tl.where(c < 1.0, tl.div_rn(1.0 - d, tl.where(c < 1.0, 1.0 - c, 1.0)), 1.0)
            least = tl.minimum(least, tl.min(bound, 0))
    if GAUSSIAN:  # one exponential for each mask; a sigma that is infinite in float32 meets no 0
        least = tl.where(least < 0, tl.exp(sigma * tl.where(least < 0, least, -1.0)), 1.0)
    place = tl.load(order_ptr + j, mask=inside, other=0)
    score = tl.load(scores_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(decay_ptr + place, least, mask=inside)
    # A score that is decayed to nothing is 0, also where it was infinite.
    value = tl.where((least == 0.0) & (tl.abs(score) == float("inf")), 0.0, score * least)
    tl.store(decayed_ptr + place, value.to(decayed_ptr.dtype.element_ty), mask=inside)


def matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, kernel: str, sigma: float
) -> tuple[Tensor, Tensor]:
    """Decayed scores [n] and the decay [n] itself, in input order.

    ``masks`` are bool or uint8 [n, P], or int64 words [n, W] whose spare bits are zero.
    """
    count = len(scores)
    decayed = scores.new_empty(count)
    decay = scores.new_empty(count, dtype=torch.float32)
    if count == 0:
        return decayed, decay
    scores, labels = scores.contiguous(), labels.contiguous()
    masks, words, pixels, pack = rows_of_words(masks)
    order, areas = words.new_empty(count), words.new_empty(count)
    in_order = torch.empty_like(labels)
    launch(
        _matrix_nms_sort_kernel,
        (count,),
        masks,
        words,
        labels,
        scores,
        order,
        areas,
        in_order,
        count,
        pixels,
        words.shape[1],
        PACK=pack,
        ROW=ROW,
        SCORES=_SCORES,
    )
    worst = torch.empty_like(decay)
    largest = torch.finfo(torch.float32).max
    for strip in range(0, count, _STRIP):
        columns = min(_STRIP, count - strip)
        pairs, parts = _pairs(words, order, in_order, strip, columns)
        blocks = (triton.cdiv(columns, _J),)
        given = (count, strip, columns, parts)
        tile = {"BLOCK_I": _I, "BLOCK_J": _J}
        launch(_matrix_nms_worst_kernel, blocks, pairs, in_order, areas, worst, *given, **tile)
        launch(
            _matrix_nms_decay_kernel,
            blocks,
            pairs,
            in_order,
            areas,
            worst,
            order,
            scores,
            decayed,
            decay,
            min(sigma, largest),
            *given,
            GAUSSIAN=kernel == "gaussian",
            **tile,
        )
    return decayed, decay


def _pairs(words: Tensor, order: Tensor, labels: Tensor, strip: int, columns: int) -> tuple[Tensor, int]:
    """Shared bits [parts, n, columns] of a strip of columns with all masks before its end."""
    count, width = words.shape
    rows, across = triton.cdiv(strip + columns, _BLOCK), triton.cdiv(columns, _BLOCK)
    step = 3 * _BLOCK_W
    parts = max(1, min(_MOST_PARTS, triton.cdiv(width, step), 2 * _PROGRAMS // (rows * across)))
    pairs = words.new_empty(parts, count, columns)
    launch(
        _matrix_nms_pairs_kernel,
        (rows * across, parts),
        words,
        order,
        labels,
        pairs,
        count,
        width,
        strip,
        columns,
        triton.cdiv(triton.cdiv(width, parts), step) * step,
        2,
    )
    return pairs, parts


_TYPES = {
    "masks_ptr": "*u8",
    "words_ptr": "*i32",
    "labels_ptr": "*i64",
    "sorted_labels_ptr": "*i64",
    "scores_ptr": "*T",
    "decayed_ptr": "*T",
    "decay_ptr": "*fp32",
    "worst_ptr": "*fp32",
    "order_ptr": "*i32",
    "areas_ptr": "*i32",
    "pairs_ptr": "*i32",
    "sigma": "fp32",
}
_TILE = {"BLOCK_I": _I, "BLOCK_J": _J}
AOT = (
    *(
        Aot(_matrix_nms_sort_kernel, _TYPES, {"PACK": pack, "ROW": ROW, "SCORES": _SCORES})
        for pack in (True, False)
    ),
    Aot(_matrix_nms_pairs_kernel, _TYPES, {}, ("fp32",)),
    Aot(_matrix_nms_worst_kernel, _TYPES, _TILE, ("fp32",)),
    *(Aot(_matrix_nms_decay_kernel, _TYPES, {"GAUSSIAN": given, **_TILE}) for given in (True, False)),
)
