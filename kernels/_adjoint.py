"""How the transpose of an enlargement is divided among programs.

A program owns BLOCK_I rows and up to BLOCK_J columns of the input. It walks the rows of the output that these
have a part in, BLOCK_Y at a time, BLOCK_X columns wide, and adds them to its own rows as they go by (no lane
reads another's); the columns are gathered once, at the end. No atomics, and one order of adding.
"""

from __future__ import annotations

from ._bilinear import window
from ._launch import config

BLOCK_J, BLOCK_X = 64, 128

# One stage: Triton would fetch the taps of later rows through shared memory, four bytes at a time.
CONFIGS = (config(8, 1, BLOCK_I=16, BLOCK_Y=4, BLOCK_J=BLOCK_J, BLOCK_X=BLOCK_X),)


def owned_columns(width_in: int, width: int) -> int:
    """As many as BLOCK_X outputs cover, in blocks of equal size; wider ones are walked in steps."""
    most = min(BLOCK_J, max(1, (BLOCK_X - 2) * width_in // width - 1))
    return -(-width_in // -(-width_in // most))


def most_outputs(width_in: int, width: int) -> int:
    """Of one input, at a time."""
    return min(window(width_in, width), BLOCK_X)
