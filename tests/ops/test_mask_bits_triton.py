"""`mask_bits` in Triton: what the other backends do not do in the same way."""

from __future__ import annotations

import pytest
import torch

OP, BACKEND = "mask_bits", "triton"


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sample_that_falls_on_an_input_is_that_input(runner, axis):
    """Its neighbour, a NaN of weight 0, has no part in it: output 4 of 9 is input 1 of 3."""
    logits = torch.tensor([3.0, 3.0, torch.nan], device=runner.device)
    small, large = ((1, 3), (1, 9)) if axis else ((3, 1), (9, 1))
    out = runner(logits.reshape(1, *small), None, small, large)
    assert out.to_bool().flatten().tolist() == [True] * 5 + [False] * 4
