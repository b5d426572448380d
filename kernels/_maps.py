"""Tiles of enlarged maps, made straight from coarse logits and attention rows.

Tiles are [columns, rows]: where loads have no order of their own, Triton lays the first dim along the lanes.
"""

import triton
import triton.language as tl

from ._bilinear import bilinear_tap, mix


@triton.jit
def cell_and_tile(tiles):
    """Which cell (int64), and which of its ``tiles``: one axis of programs, as the others end at 65,535."""
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64), program % tiles


@triton.jit
def enlarged(image_ptr, columns, rows, width, height, out_width, out_height):
    """Pixels ``columns`` x ``rows`` of the image, enlarged to [out_height, out_width], as float32.

    Pixels past the end repeat the last one: no load is out of bounds.
    """
    left, right, across = bilinear_tap(columns, width, out_width)
    top, bottom, down = bilinear_tap(rows, height, out_height)
    above, below = (top * width)[None, :], (bottom * width)[None, :]
    left, right = left[:, None], right[:, None]
    across = across[:, None]
    upper = mix(
        tl.load(image_ptr + (above + left)).to(tl.float32),
        tl.load(image_ptr + (above + right)).to(tl.float32),
        across,
    )
    lower = mix(
        tl.load(image_ptr + (below + left)).to(tl.float32),
        tl.load(image_ptr + (below + right)).to(tl.float32),
        across,
    )
    return mix(upper, lower, down[None, :])


@triton.jit
def logits(
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
    HAS_ATTENTION: tl.constexpr,
):
    """up(coarse_k) + up(attention_k) at pixels ``columns`` x ``rows`` of [height, width]; ``k`` is int64."""
    image = coarse_ptr + k * coarse_height * coarse_width
    out = enlarged(image, columns, rows, coarse_width, coarse_height, width, height)
    if HAS_ATTENTION:
        out += enlarged(attention_ptr + k * side * side, columns, rows, side, side, width, height)
    return out


@triton.jit
def sigmoid(x):
    """Exactly 1/2 at 0 and 0 far below it, where masks are decided.

    Division in Triton is an approximation, which one step of Newton's mends; div_rn is a call, for which
    registers are spilled.
    """
    below = 1.0 + tl.exp(-x)
    inverse = 1.0 / below
    return tl.where(below < float("inf"), tl.fma(inverse, tl.fma(-below, inverse, 1.0), inverse), inverse)
