"""Dice loss of chosen cells from coarse logits and attention rows (docs/method.md, "Losses" step 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._utils.checks import accumulator, check_like, check_tensor, fail
from ..reference import dice_loss as reference
from ._checks import check_coarse
from ._library import declare, overload, pick


def dice_loss(
    coarse_logits: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    eps: float = 1e-3,
    *,
    backend: str | None = None,
) -> Tensor:
    """Dice loss of each row: ``dice(sigmoid(upsample_add(coarse_logits, attention, (H, W))), targets)``.

    ``1 - 2 Sum(p t) / ((Sum p^2 + eps) + (Sum t^2 + eps))`` (docs/method.md, "Losses" step 2). A target
    without pixels gives a loss of 1 and next to no gradient. Differentiable in ``coarse_logits`` and
    ``attention``, once.

    Args:
        coarse_logits: [K, h, w]; a float dtype.
        attention: [K, S, S], same dtype; None is plain SOLO.
        targets: [K, H, W], bool or uint8; what is not zero is the object.
        eps: keeps the quotient finite where both masks are empty.
        backend: None for the fastest that can run.

    Returns:
        [K], float32 (float64 for float64 logits): sums over masks do not fit in half precision.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run.
    """
    op = "dice_loss"
    check_coarse(op, coarse_logits, attention)
    check_tensor(op, "targets", targets, "[K, H, W]")
    if targets.dtype not in (torch.bool, torch.uint8):
        fail(op, "targets", "of dtype bool or uint8", str(targets.dtype))
    if targets.shape[0] != coarse_logits.shape[0] or 0 in targets.shape[1:]:
        fail(
            op,
            "targets",
            f"of shape [K, H, W] with K = {coarse_logits.shape[0]} as coarse_logits has, and H, W >= 1",
            f"{list(targets.shape)}",
        )
    check_like(op, "targets", targets, "coarse_logits", coarse_logits, dtype=False)
    if not eps > 0:
        fail(op, "eps", "> 0", str(eps))
    loss, _ = pick(op, coarse_logits, backend)(coarse_logits, attention, targets, float(eps))
    return loss


def _fake(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    count, dtype = coarse_logits.shape[0], accumulator(coarse_logits.dtype)
    return coarse_logits.new_empty(count, dtype=dtype), coarse_logits.new_empty(count, 2, dtype=dtype)


def _fake_bwd(
    grad: Tensor, coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    rows = (coarse_logits.shape[0], 0, 0) if attention is None else attention.shape
    return coarse_logits.new_empty(coarse_logits.shape), coarse_logits.new_empty(rows)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    coarse_logits, attention, targets, _ = inputs
    _, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(coarse_logits, attention, targets, sums)


def _backward(namespace: str, ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    coarse_logits, attention, targets, sums = ctx.saved_tensors
    coarse, rows = overload(namespace, "dice_loss_bwd")(grad, coarse_logits, attention, targets, sums)
    return coarse, None if attention is None else rows, None, None


declare(
    "dice_loss_bwd",
    "(Tensor grad, Tensor coarse_logits, Tensor? attention, Tensor targets, Tensor sums) -> (Tensor, Tensor)",
    reference=reference.dice_loss_bwd,
    fake=_fake_bwd,
)
declare(
    "dice_loss",
    "(Tensor coarse_logits, Tensor? attention, Tensor targets, float eps) -> (Tensor, Tensor)",
    reference=reference.dice_loss,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
