"""`upsample_add` in Triton: what the other backends do not do in the same way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

OP, BACKEND = "upsample_add", "triton"


@pytest.mark.parametrize("size", [(5, 7), (15, 21), (10, 14)], ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_where_it_has_a_part(runner, value, size):
    """And not where a sample falls on its neighbour, whose part is all of it."""
    maps = torch.zeros(2, 5, 7, device=runner.device)
    maps[1, 2, 3] = maps[1, 4, 6] = value
    part = F.interpolate(maps.ne(0)[None].double(), size, mode="bilinear")[0]
    expected = torch.where(part > 0, value, 0).float()
    torch.testing.assert_close(runner(maps, None, size), expected, rtol=0, atol=0, equal_nan=True)
