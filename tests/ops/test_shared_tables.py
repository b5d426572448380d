"""Tables of taps, which the calls of the C++ kernels share: the last 64 of a kind, of any thread."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from solo_attn import ops

# Of all but one kind of table more than 64 pairs (in, out), of backward columns of masks too.
SIZES = [(3 + k % 2, 4 + k % 3, 5 + k, 80 - k) for k in range(70)]


def results_of(size: tuple[int, int, int, int], backend: str) -> list[torch.Tensor]:
    """Of one call of each kind of table: forward and backward, of one map and of masks."""
    h, w, *out = size
    draw = torch.Generator().manual_seed(h + out[0])
    coarse = torch.randn(2, h, w, generator=draw, dtype=torch.float64, requires_grad=True)
    larger = ops.upsample_add(coarse, None, tuple(out), backend=backend)
    weight = torch.randn(larger.shape, generator=draw, dtype=torch.float64)
    losses = ops.dice_loss(coarse, None, weight > 0, backend=backend)
    bits = ops.mask_bits(coarse.detach(), None, tuple(out), tuple(out), backend=backend)
    (up,) = torch.autograd.grad((larger * weight).sum(), coarse)
    (down,) = torch.autograd.grad(losses.sum(), coarse)
    return [larger.detach(), losses.detach(), bits.areas, bits.maskness, up, down]


@pytest.fixture(scope="module")
def wanted() -> dict[tuple[int, int, int, int], list[torch.Tensor]]:
    return {size: results_of(size, "reference") for size in SIZES}


@pytest.mark.parametrize("workers", [1, 4])
def test_each_call_has_the_tables_of_its_sizes(
    wanted: dict[tuple[int, int, int, int], list[torch.Tensor]], workers: int
) -> None:
    """More sizes than are kept, in another order each time, by one thread and by several at once."""
    todo = [size for seed in range(3) for size in random.Random(seed).sample(SIZES, len(SIZES))]
    with ThreadPoolExecutor(workers) as pool:
        for size, found in zip(todo, pool.map(lambda size: results_of(size, "cpu"), todo), strict=True):
            for one, other in zip(found, wanted[size], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_tables_too_long_to_be_kept() -> None:
    for size in ((2, 3, 5, 5000), (2, 3, 5, 4999), (2, 3, 5, 5000)):
        for one, other in zip(results_of(size, "cpu"), results_of(size, "reference"), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
