"""Bilinear enlarging along one axis, as ``csrc/common/bilinear.h`` does it: the same taps on every backend.

Output d samples the input at ((2 d + 1) in - out) / (2 out), held to its ends, in integers, so that no device
is off where a sample falls on an input. Sizes up to 32,767: (2 d + 1) in stays below 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bilinear_tap(d, size_in, size_out):
    """(low, high, weight) with out[d] = (1 - weight) in[low] + weight in[high]; ``d`` a number or a block."""
    place = tl.maximum((2 * d + 1) * size_in - size_out, 0)  # in units of 1 / (2 out)
    low = place // (2 * size_out)
    # Tensor / tensor in float32 is an approximation in Triton; div_rn is not.
    part = (place % (2 * size_out)).to(tl.float32)
    weight = tl.where(low < size_in - 1, tl.div_rn(part, part * 0 + 2 * size_out), 0.0)
    low = tl.minimum(low, size_in - 1)
    return low, tl.minimum(low + 1, size_in - 1), weight


@triton.jit
def bilinear_first(i, size_in, size_out):
    """The first output whose sample lies at input ``i`` or after it; ``i`` a number or a block.

    The outputs that input i has a part in are those from bilinear_first(i - 1, ..) to before
    bilinear_first(i + 1, ..): at most `window` of them.
    """
    least = tl.maximum(
        (2 * i + 1) * size_out - size_in, 0
    )  # (2 d + 1) in - out >= 2 out i, solved for 2 in d
    first = (least + 2 * size_in - 1) // (2 * size_in)
    return tl.where(i <= 0, 0, tl.where(i >= size_in, size_out, first))


@triton.jit
def bilinear_part(i, low, high, weight):
    """The part of input ``i`` in an output with these taps, for the transpose."""
    return tl.where(low == i, 1 - weight, tl.where(high == i, weight, 0.0))


def window(size_in: int, size_out: int) -> int:
    """No input has a part in more outputs than this: two steps, and half a step before the first input."""
    return min(size_out, 5 * size_out // (2 * size_in) + 1)
