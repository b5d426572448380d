"""Dice loss of chosen cells from coarse logits and attention rows (docs/method.md, "Losses" step 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import accumulator, check_like, check_number, check_tensor, fail
from ..reference import dice_loss as reference
from ._checks import attention_of, can_be_joined, check_coarse, check_levels
from ._library import declare, overload, pick, pick_form
from .mask_factors import MaskFactors

Level = tuple[Tensor | MaskFactors, Tensor | None, Tensor]


def dice_loss(
    coarse_logits: Tensor | MaskFactors,
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

    Of `MaskFactors` with targets of their size (h, w), as in SOLOv2, the backends "cpu" and "reference"
    keep no logits and no gradient of them; elsewhere the product is made first.

    Args:
        coarse_logits: [K, h, w], or its `MaskFactors`; a float dtype.
        attention: [K, S, S], same dtype; None is plain SOLO.
        targets: [K, H, W], bool or uint8; what is not zero is the object.
        eps: keeps the quotient finite where both masks are empty.
        backend: None for the fastest that can run.

    Returns:
        [K], float32 (float64 for float64 logits): sums over masks do not fit in half precision.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run.

    Example:
        >>> coarse, target = torch.tensor([[[20.0, -20.0]]]), torch.tensor([[[True, False]]])
        >>> dice_loss(coarse, None, target)
        tensor([0.0010])
    """
    op = "dice_loss"
    _check_targets(op, *check_coarse(op, coarse_logits, attention), targets)
    _check_eps(op, eps)
    if isinstance(coarse_logits, MaskFactors):
        kernels, features, images = coarse_logits.kernels, coarse_logits.features, coarse_logits.images
        same_size = coarse_logits.size == (targets.shape[1], targets.shape[2])
        fused = pick_form(op, kernels, backend, "factors") if same_size else None
        if fused is not None:
            loss, _ = fused(kernels, features, images, attention, targets, float(eps))
            return loss
        coarse_logits = coarse_logits.logits()
    loss, _ = pick(op, coarse_logits, backend)(coarse_logits, attention, targets, float(eps))
    return loss


def dice_loss_levels(levels: Sequence[Level], eps: float = 1e-3, *, backend: str | None = None) -> Tensor:
    """`dice_loss` of several levels' cells at once.

    The backend "cuda" has one launch for all levels (two, where the width of some levels' targets is a
    multiple of 4, and of others is not), and one for all gradients: where one level's coarse logits need a
    gradient, those of all levels are computed, and so for attention rows. Elsewhere, and of `MaskFactors` and
    more than 8 levels, there is one call for each.

    Args:
        levels: at least one (coarse_logits, attention, targets), each as in `dice_loss` and all of one dtype
            and device; a level may have no cells.
        eps: keeps the quotient finite where both masks are empty.
        backend: None for the fastest that can run.

    Returns:
        The losses of all levels' cells, those of the first level first, as of `dice_loss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run.

    Example:
        >>> coarse, target = torch.tensor([[[20.0, -20.0]]]), torch.tensor([[[True, False]]])
        >>> dice_loss_levels([(coarse, None, target), (-coarse, None, target)])
        tensor([0.0010, 1.0000])
    """
    op = "dice_loss"
    found = check_levels(op, levels)
    for (first, name), (_, _, targets) in zip(found, levels, strict=True):
        _check_targets(op, first, name, targets)
    _check_eps(op, eps)
    fused = pick_form(op, found[0][0], backend, "levels") if can_be_joined(levels) else None
    if fused is None:
        return torch.cat([dice_loss(*level, eps, backend=backend) for level in levels])
    coarse, truth = [level[0] for level in levels], [level[2] for level in levels]
    loss, _ = fused(coarse, attention_of(levels), truth, float(eps))
    return loss


def _check_targets(op: str, first: Tensor, name: str, targets: Any) -> None:
    check_tensor(op, "targets", targets, "[K, H, W]")
    if targets.dtype not in (torch.bool, torch.uint8):
        fail(op, "targets", "of dtype bool or uint8", str(targets.dtype))
    if targets.shape[0] != first.shape[0] or 0 in targets.shape[1:]:
        wanted = f"of shape [K, H, W] with K = {first.shape[0]} as {name} has, and H, W >= 1"
        fail(op, "targets", wanted, f"{list(targets.shape)}")
    check_like(op, "targets", targets, name, first, dtype=False)


def _check_eps(op: str, eps: Any) -> None:
    check_number(op, "eps", eps, finite=False)
    if not 0 < eps < math.inf:
        fail(op, "eps", "> 0 and finite", str(eps))


def _fake(
    coarse_logits: Tensor, attention: Tensor | None, targets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    count, dtype = coarse_logits.shape[0], accumulator(coarse_logits.dtype)
    return coarse_logits.new_empty(count, dtype=dtype), coarse_logits.new_empty(count, 2, dtype=dtype)


def _fake_bwd(
    grad: Tensor,
    coarse_logits: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    sums: Tensor,
    coarse_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[Tensor, Tensor]:
    nothing = (coarse_logits.shape[0], 0, 0)
    return (
        coarse_logits.new_empty(coarse_logits.shape if coarse_wanted else nothing),
        coarse_logits.new_empty(attention.shape if attention is not None and attention_wanted else nothing),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    coarse_logits, attention, targets, _ = inputs
    _, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(coarse_logits, attention, targets, sums)


def _backward(namespace: str, ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    coarse_logits, attention, targets, sums = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[0], attention is not None and ctx.needs_input_grad[1])
    coarse, rows = overload(namespace, "dice_loss_bwd")(
        grad, coarse_logits, attention, targets, sums, *wanted
    )
    return coarse if wanted[0] else None, rows if wanted[1] else None, None, None


declare(
    "dice_loss_bwd",
    "(Tensor grad, Tensor coarse_logits, Tensor? attention, Tensor targets, Tensor sums,"
    " bool coarse_wanted=True, bool attention_wanted=True) -> (Tensor, Tensor)",
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


def _fake_levels(
    coarse_logits: list[Tensor], attention: list[Tensor], targets: list[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    first, count = coarse_logits[0], sum(level.shape[0] for level in coarse_logits)
    dtype = accumulator(first.dtype)
    return first.new_empty(count, dtype=dtype), first.new_empty(count, 2, dtype=dtype)


def _fake_levels_bwd(
    grad: Tensor,
    coarse_logits: list[Tensor],
    attention: list[Tensor],
    targets: list[Tensor],
    sums: Tensor,
    coarse_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[list[Tensor], list[Tensor]]:
    rows: list[Tensor | None] = [x if x.numel() else None for x in attention]
    rows = rows or [None] * len(coarse_logits)
    found = [
        _fake_bwd(grad, coarse, row, truth, sums, coarse_wanted, attention_wanted)
        for coarse, row, truth in zip(coarse_logits, rows, targets, strict=True)
    ]
    return [coarse for coarse, _ in found], [row for _, row in found]


def _setup_context_levels(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    coarse_logits, attention, targets, _ = inputs
    _, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.count = len(coarse_logits)
    ctx.save_for_backward(*coarse_logits, *attention, *targets, sums)


def _backward_levels(namespace: str, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    *lists, sums = ctx.saved_tensors
    coarse, rows, targets = lists[: ctx.count], lists[ctx.count : -ctx.count], lists[-ctx.count :]
    needs = ctx.needs_input_grad[:2]
    run = overload(namespace, "dice_loss_levels_bwd")
    grads = run(grad, coarse, rows, targets, sums, any(needs[0]), any(needs[1]))
    made = [
        [x.reshape(given.shape) if want else None for x, want, given in zip(*level, strict=False)]
        for level in zip(grads, needs, (coarse, rows), strict=True)
    ]
    return *made, [None] * ctx.count, None


_LEVELS = "Tensor[] coarse_logits, Tensor[] attention, Tensor[] targets"
declare(
    "dice_loss_levels_bwd",
    f"(Tensor grad, {_LEVELS}, Tensor sums, bool coarse_wanted=True, bool attention_wanted=True)"
    " -> (Tensor[], Tensor[])",
    reference=reference.dice_loss_levels_bwd,
    fake=_fake_levels_bwd,
    in_triton=False,
)
declare(
    "dice_loss_levels",
    f"({_LEVELS}, float eps) -> (Tensor, Tensor)",
    reference=reference.dice_loss_levels,
    fake=_fake_levels,
    setup_context=_setup_context_levels,
    backward=_backward_levels,
    in_triton=False,
)


def _fake_factors(
    kernels: Tensor, features: Tensor, images: Tensor, attention: Tensor | None, targets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _fake(kernels, attention, targets, eps)


def _fake_factors_bwd(
    grad: Tensor,
    kernels: Tensor,
    features: Tensor,
    images: Tensor,
    attention: Tensor | None,
    targets: Tensor,
    sums: Tensor,
    kernels_wanted: bool = True,
    features_wanted: bool = True,
    attention_wanted: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    count, side = kernels.shape[0], attention.shape[1] if attention is not None and attention_wanted else 0
    return (
        kernels.new_empty(count if kernels_wanted else 0, kernels.shape[1]),
        kernels.new_empty(features.shape[0] if features_wanted else 0, *features.shape[1:]),
        kernels.new_empty(count, side, side),
    )


def _setup_context_factors(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(*inputs[:5], sums)


def _backward_factors(namespace: str, ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    kernels, features, images, attention, targets, sums = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = (needs[0], needs[1], attention is not None and needs[3])
    run = overload(namespace, "dice_loss_factors_bwd")
    grads = run(grad, kernels, features, images, attention, targets, sums, *wanted)
    made = [x if want else None for x, want in zip(grads, wanted, strict=True)]
    return made[0], made[1], None, made[2], None, None


declare(
    "dice_loss_factors_bwd",
    "(Tensor grad, Tensor kernels, Tensor features, Tensor images, Tensor? attention, Tensor targets,"
    " Tensor sums, bool kernels_wanted=True, bool features_wanted=True, bool attention_wanted=True)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.dice_loss_factors_bwd,
    fake=_fake_factors_bwd,
    in_triton=False,
)
declare(
    "dice_loss_factors",
    "(Tensor kernels, Tensor features, Tensor images, Tensor? attention, Tensor targets, float eps)"
    " -> (Tensor, Tensor)",
    reference=reference.dice_loss_factors,
    fake=_fake_factors,
    setup_context=_setup_context_factors,
    backward=_backward_factors,
    in_triton=False,
)
