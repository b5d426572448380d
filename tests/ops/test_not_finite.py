"""Infinities and NaN, in each op that interpolates: they are in what has a part of them, and nowhere else.

A weight of 0 beside a sample that falls on an input, or is held to the first or last one, makes NaN of both:
every backend is held against the reference, whose `resize` tests/regressions compares with a definition.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from solo_attn import attention_residual, dice_loss, mask_bits, paste_masks, upsample_add
from solo_attn.reference._common import resize, resize_adjoint

OP = "upsample_add"  # for the runners; each test says which op it calls
VALUES = [torch.inf, torch.nan]
# From 5 x 6: each third sample falls on an input, all do, none does, and the last two are reduced.
SIZES = [(15, 18), (5, 6), (10, 12), (25, 7), (3, 4), (1, 2)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-4, atol=1e-5, equal_nan=True)


def holes(x: Tensor, value: float) -> Tensor:
    """The first, the last and an inner element of the second map are ``value``."""
    x = x.clone()
    x[1, 0, 0] = x[1, -1, -1] = x[1, x.shape[1] // 2, x.shape[2] // 2] = value
    return x


def pairs(runner, value: float) -> list[tuple[Tensor, Tensor | None]]:
    coarse, rows = runner.randn(2, 5, 6, dtype=torch.float32), runner.randn(2, 3, 3, dtype=torch.float32)
    return [(holes(coarse, value), None), (holes(coarse, value), rows), (coarse, holes(rows, value))]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_upsample_add(runner, value, size):
    for coarse, rows in pairs(runner, value):
        close(
            upsample_add(coarse, rows, size, backend=runner.backend),
            upsample_add(coarse.cpu(), None if rows is None else rows.cpu(), size, backend="reference"),
        )


def gradients(call: Callable[[Tensor, Tensor], Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Of finite inputs, for an upstream gradient that is not."""
    coarse = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).to(grad.device)
    rows = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1)).to(grad.device)
    out = call(coarse.requires_grad_(), rows.requires_grad_())
    return torch.autograd.grad(out, (coarse, rows), grad)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_gradients_of_upsample_add(runner, value, size):
    grad = holes(runner.randn(2, *size, dtype=torch.float32), value)
    found, expected = (
        gradients(lambda c, r, b=b: upsample_add(c, r, size, backend=b), x)
        for b, x in ((runner.backend, grad), ("reference", grad.cpu()))
    )
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_dice_loss(runner, value, size):
    targets = runner.rand_bool(2, *size)
    for coarse, rows in pairs(runner, value):
        close(
            dice_loss(coarse, rows, targets, backend=runner.backend),
            dice_loss(coarse.cpu(), None if rows is None else rows.cpu(), targets.cpu(), backend="reference"),
        )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_of_dice_loss(runner, size):
    """Inputs without a pixel, as in masks smaller than their logits, have a gradient of 0."""
    grad, targets = torch.tensor([1.0, torch.nan], device=runner.device), runner.rand_bool(2, *size)
    found, expected = (
        gradients(lambda c, r, b=b, t=t: dice_loss(c, r, t, backend=b), x)
        for b, t, x in ((runner.backend, targets, grad), ("reference", targets.cpu(), grad.cpu()))
    )
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("out_size", [(10, 12), (30, 36), (7, 9)], ids=str)
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@pytest.mark.parametrize("value", [*VALUES, -torch.inf])
def test_mask_bits(runner, value, size, out_size):
    for coarse, rows in pairs(runner, value):
        found = mask_bits(coarse, rows, size, out_size, backend=runner.backend)
        wanted = mask_bits(
            coarse.cpu(), None if rows is None else rows.cpu(), size, out_size, backend="reference"
        )
        assert found.areas.tolist() == wanted.areas.tolist()
        close(found.maskness, wanted.maskness)


@pytest.mark.parametrize("original", [(20, 24), (60, 71), (9, 10)], ids=str)
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_paste_masks(runner, value, size, original):
    for coarse, rows in pairs(runner, value):
        args = (size, (5, 6), (20, 24), original)
        found = paste_masks(coarse, rows, *args, backend=runner.backend)
        wanted = paste_masks(coarse.cpu(), None if rows is None else rows.cpu(), *args, backend="reference")
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("size", [(9, 9), (3, 3), (8, 6), (2, 5)], ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_attention_residual(runner, value, size):
    features = runner.randn(1, 4, 3, 3, dtype=torch.float32).abs()
    features[0, 1, 0, 1] = value
    logits = runner.randn(1, 9, *size, dtype=torch.float32)
    close(
        attention_residual(logits, features, backend=runner.backend),
        attention_residual(logits.cpu(), features.cpu(), backend="reference"),
    )


@pytest.mark.parametrize("size", [(9, 9), (3, 3), (8, 6), (2, 5)], ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_gradients_of_attention_residual(runner, value, size):
    """One cell's pixels go to no features but those of itself and of the cells that have a part in them."""
    logits = torch.zeros(1, 9, *size, device=runner.device)
    grad = runner.randn(1, 9, *size, dtype=torch.float32).abs()
    grad[0, 4, 0, 0] = grad[0, 4, -1, 1] = value

    def back(backend: str, device: str) -> Tensor:
        features = runner.randn(1, 4, 3, 3, dtype=torch.float32).abs().to(device).requires_grad_()
        out = attention_residual(logits.to(device), features, backend=backend)
        return torch.autograd.grad(out, features, grad.to(device))[0]

    close(back(runner.backend, runner.device), back("reference", "cpu"))


def test_the_reference_does_not_wait_for_a_gpu():
    """On the meta device, what needs a value on the host raises."""
    x = torch.empty(2, 5, 7, device="meta")
    assert resize(x, (9, 4)).shape == (2, 9, 4)
    assert resize_adjoint(x, (9, 4)).shape == (2, 9, 4)
