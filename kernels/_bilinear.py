"""Bilinear enlarging along one axis, as ``csrc/common/bilinear.h`` does it: the same taps on every backend.

Output d samples the input at ((2 d + 1) in - out) / (2 out), held to its ends, in integers, so that no device
is off where a sample falls on an input. In 32 bits, which `check_sizes` sees to.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl


@triton.jit
def bilinear_tap(d, size_in, size_out):
    """(low, high, weight) with out[d] = (1 - weight) in[low] + weight in[high]; ``d`` a number or a block.

    ``high`` is ``low`` where the weight is 0: a NaN beside a sample that falls on an input stays out.
    """
    place = tl.maximum((2 * d + 1) * size_in - size_out, 0)  # in units of 1 / (2 out)
    # Unsigned: half the instructions. By `cast`, as Triton makes constants of arguments that are 1.
    low = (place.to(tl.uint32) // tl.cast(2 * size_out, tl.uint32)).to(tl.int32)
    whole = tl.cast(2 * size_out, tl.float32)
    part = (place - low * (2 * size_out)).to(tl.float32)
    # Tensor / tensor in float32 is an approximation in Triton, and div_rn of each a call, for which registers
    # are spilled. So one div_rn, and what is left over of the product, once: 1/4 is 1/4.
    step = 1.0 / whole
    weight = part * step
    weight = tl.where(low < size_in - 1, tl.fma(tl.fma(-weight, whole, part), step, weight), 0.0)
    low = tl.minimum(low, size_in - 1)
    return low, tl.where(weight > 0, low + 1, low), weight


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


@triton.jit
def bilinear_share(i, d, size_in, size_out):
    """The part of input ``i`` in output ``d``, without its taps: 1 at i, falling to 0 at its neighbours."""
    place = tl.minimum(tl.maximum((2 * d + 1) * size_in - size_out, 0), 2 * size_out * (size_in - 1))
    near = tl.maximum(2 * size_out - tl.abs(place - i * (2 * size_out)), 0).to(tl.float32)
    return near * (0.5 / size_out)


@triton.jit
def lerp(a, b, weight):
    """Between equal ends that end itself, to the bit: 1/2 stays 1/2. For what is finite or NaN."""
    return a + weight * (b - a)


@triton.jit
def mix(a, b, weight):
    """`lerp` that keeps an infinity: an operation more, and ``a`` itself where the weight is 0."""
    return tl.fma(weight, tl.where(weight > 0, b, 0.0), (1 - weight) * a)


def window(size_in: int, size_out: int) -> int:
    """No input has a part in more outputs than this: two steps, and half a step before the first input."""
    return min(size_out, 5 * size_out // (2 * size_in) + 1)


def check_sizes(op: str, *steps: tuple[Sequence[int], Sequence[int]]) -> None:
    """Refuse (from, to), each (height, width), that 32 bits do not hold up to a block past the end."""
    for small, large in steps:
        for height, width in (small, large):
            if height * width >= 1 << 31:
                raise ValueError(
                    f"{op}: expected maps of fewer than 2^31 pixels for backend 'triton', "
                    f"got {height} x {width}"
                )
        for size_in, size_out in zip(small, large, strict=True):
            if 2 * size_in * (size_out + 256) >= 1 << 31:
                raise ValueError(
                    f"{op}: expected sizes with a product below 2^30 along an axis for backend 'triton', "
                    f"got {size_in} and {size_out}"
                )
