"""How results are divided among programs: what a program owns has all of its taps in the tile it makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from solo_attn.kernels import _adjoint, _probability

LENGTHS = st.integers(1, 700)


def taps(d, n_in, n_out):
    low = min(max((2 * d + 1) * n_in - n_out, 0) // (2 * n_out), n_in - 1)
    return low, min(low + 1, n_in - 1)


@settings(deadline=None, database=None)
@given(LENGTHS, LENGTHS)
def test_maps(n_in, n_out):
    tile = {
        0: (_probability.BLOCK_Y, _probability.SOURCE_Y),
        1: (_probability.BLOCK_X, _probability.SOURCE_X),
    }
    for axis, own in enumerate(_probability.owned((n_in, n_in), (n_out, n_out))):
        block, source = tile[axis]
        assert 1 <= own <= block
        for first in range(0, n_out, own) if n_in != n_out else ():
            last = min(first + own, n_out) - 1
            assert taps(last, n_in, n_out)[1] - taps(first, n_in, n_out)[0] < source or own == 1


@settings(deadline=None, database=None)
@given(LENGTHS, LENGTHS)
def test_transpose(n_in, n_out):
    """A block's outputs are walked in steps only where it owns a single column."""
    own = _adjoint.owned_columns(n_in, n_out)
    assert 1 <= own <= _adjoint.BLOCK_J
    for first in range(0, n_in, own) if own > 1 else ():
        mine = [d for d in range(n_out) if {*taps(d, n_in, n_out)} & {*range(first, first + own)}]
        assert not mine or mine[-1] - mine[0] < _adjoint.BLOCK_X
