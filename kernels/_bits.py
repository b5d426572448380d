"""Bit masks in rows of 32-bit words: packing, counting, and how many bits two rows share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROW = 256  # words of a row that a program packs or counts in one step


@triton.jit
def popcount(x):
    """Bits set in each uint32, by a sum that LLVM recognises and turns into one instruction."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def pack_row(masks_ptr, words_ptr, row, pixels, width, PACK: tl.constexpr, ROW: tl.constexpr):
    """The number of pixels of mask ``row``; with PACK its words are made first, else they exist."""
    area = tl.zeros([ROW], tl.int32)
    for start in range(0, width, ROW):
        word = start + tl.arange(0, ROW)
        if PACK:
            pixel = 32 * word[:, None] + tl.arange(0, 32)[None, :]
            value = tl.load(masks_ptr + row * pixels + pixel, mask=pixel < pixels, other=0)
            bits = tl.sum((value != 0).to(tl.int32) << tl.arange(0, 32)[None, :], 1)
            tl.store(words_ptr + row * width + word, bits, mask=word < width)
        else:
            bits = tl.load(words_ptr + row * width + word, mask=word < width, other=0)
        area += popcount(bits.to(tl.uint32, bitcast=True))
    return tl.sum(area)


@triton.jit
def shared_bits(
    words_ptr,
    others_ptr,
    left,
    right,
    width,
    other_width,
    begin,
    end,
    two,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Bits that rows of ``words`` and of ``others`` share in words ``begin`` .. ``end``: int32 [I, J].

    Rows ``left`` [I] and ``right`` [J]; negative ones have no bits. A full adder turns three words into two,
    since counting bits has a quarter of the speed of logic: 2 counts for 3 words. ``two`` is 2, as an
    argument: if LLVM knew it, it would merge the doubling into the sum that is a count, and no
    longer recognise the count.
    """
    a_row = words_ptr + tl.maximum(left, 0).to(tl.int64)[:, None, None] * width
    b_row = others_ptr + tl.maximum(right, 0).to(tl.int64)[None, :, None] * other_width
    word = tl.arange(0, BLOCK_W)[None, None, :]
    total = tl.zeros([BLOCK, BLOCK, BLOCK_W], tl.int32)
    for start in range(begin, end, 3 * BLOCK_W):
        first, second, third = start + word, start + BLOCK_W + word, start + 2 * BLOCK_W + word
        x = _both(a_row, b_row, left, right, first, end)
        y = _both(a_row, b_row, left, right, second, end)
        z = _both(a_row, b_row, left, right, third, end)
        ones = x ^ y ^ z
        twos = (x & y) | (z & (x ^ y))
        total += popcount(ones) + two * popcount(twos)
    return tl.sum(total, 2)


@triton.jit
def _both(a_row_ptr, b_row_ptr, left, right, word, end):
    a = tl.load(a_row_ptr + word, mask=(word < end) & (left >= 0)[:, None, None], other=0)
    b = tl.load(b_row_ptr + word, mask=(word < end) & (right >= 0)[None, :, None], other=0)
    return (a & b).to(tl.uint32, bitcast=True)


def rows_of_words(masks: Tensor) -> tuple[Tensor, Tensor, int, bool]:
    """For `pack_row`: masks as bytes, their words as int32 [n, W], the pixels of a row, and whether to pack.

    ``masks`` are bool or uint8 [n, P], or int64 [n, W] whose spare bits are zero.
    """
    masks = masks.contiguous()
    if masks.dtype == torch.int64:
        words = masks.view(torch.int32)
        return masks.view(torch.uint8), words, 32 * words.shape[1], False
    count, pixels = masks.shape
    words = masks.new_empty(count, (pixels + 31) // 32, dtype=torch.int32)
    return masks.view(torch.uint8), words, pixels, True
