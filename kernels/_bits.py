"""Bit masks in rows of 32-bit words, and how many bits two rows share."""

import triton
import triton.language as tl


@triton.jit
def popcount(x):
    """Bits set in each uint32, by a sum that LLVM knows and makes one instruction of."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def shared_bits(words, left, right, width, begin, end, two, BLOCK: tl.constexpr, BLOCK_W: tl.constexpr):
    """Bits that rows ``left`` [I] and rows ``right`` [J] share in words ``begin`` .. ``end``: int32 [I, J].

    Negative rows have none. A full adder makes two words of three, as counting bits is a quarter as fast as
    logic: 2 counts for 3 words. ``two`` is 2, as an argument: where LLVM knows it, it takes the doubling into
    the sum that is a count, and then knows that one no more.
    """
    a_row = words + tl.maximum(left, 0).to(tl.int64)[:, None, None] * width
    b_row = words + tl.maximum(right, 0).to(tl.int64)[None, :, None] * width
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
def _both(a_row, b_row, left, right, word, end):
    a = tl.load(a_row + word, mask=(word < end) & (left >= 0)[:, None, None], other=0)
    b = tl.load(b_row + word, mask=(word < end) & (right >= 0)[None, :, None], other=0)
    return (a & b).to(tl.uint32, bitcast=True)
