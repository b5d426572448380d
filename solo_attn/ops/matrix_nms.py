"""Scores decayed by the overlap with better masks of the same label (docs/method.md, "Matrix NMS")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import accumulator, check_float, check_like, check_number, check_tensor, fail
from ..reference import matrix_nms as reference
from ._library import declare, pick
from .bit_masks import BitMasks, mask_rows

KERNELS = ("gaussian", "linear")


def matrix_nms(
    masks: Tensor | BitMasks,
    labels: Tensor,
    scores: Tensor,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Decay each score by the overlap with better masks of the same label (docs/method.md, "Matrix NMS").

    Better is a higher score, then a lower index; the input need not be sorted. Of empty masks the IoU is
    0, and where a mask has identical ones before it the linear kernel stays finite. A NaN score stays
    NaN and touches no other. The shape of the result does not depend on the data: threshold the scores
    to drop masks. For a batch of images, concatenate them and make labels differ between images.
    Differentiable in ``scores`` (the decay is piecewise constant in them).

    Args:
        masks: bool or uint8 [n, H, W], or BitMasks.
        labels: int64 [n].
        scores: [n]; a float dtype.
        kernel: "gaussian", exp(-sigma iou^2), or "linear", 1 - iou.
        sigma: of the gaussian, > 0 and finite.
        backend: None for the fastest that can run.

    Returns:
        Decayed scores [n] in input order, dtype of ``scores``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run.

    Example:
        >>> masks, labels = torch.ones(2, 4, 4, dtype=torch.bool), torch.tensor([0, 0])
        >>> matrix_nms(masks, labels, scores=torch.tensor([0.9, 0.8]))
        tensor([0.9000, 0.1083])
    """
    op = "matrix_nms"
    check_tensor(op, "scores", scores, "[n]")
    check_float(op, "scores", scores)
    rows, _ = mask_rows(op, "masks", masks)
    check_tensor(op, "labels", labels, "[n]")
    if labels.dtype != torch.int64:
        fail(op, "labels", "of dtype int64", str(labels.dtype))
    for name, x in (("masks", rows), ("labels", labels)):
        if x.shape[0] != scores.shape[0]:
            fail(op, name, f"of length n = {scores.shape[0]} as scores has", str(x.shape[0]))
        check_like(op, name, x, "scores", scores, dtype=False)
    if kernel not in KERNELS:
        fail(op, "kernel", f"to be one of {', '.join(KERNELS)}", repr(kernel))
    check_number(op, "sigma", sigma, finite=False)
    if not 0 < sigma < math.inf:
        fail(op, "sigma", "> 0 and finite", str(sigma))
    # Infinite in the dtype of the sums, it would make masks that do not overlap decay by 0 times infinity.
    sigma = min(float(sigma), torch.finfo(accumulator(scores.dtype)).max)
    decayed, _ = pick(op, scores, backend)(rows, labels, scores, kernel, sigma)
    return decayed


def _fake(masks: Tensor, labels: Tensor, scores: Tensor, kernel: str, sigma: float) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape), scores.new_empty(scores.shape, dtype=accumulator(scores.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, decay = output
    ctx.mark_non_differentiable(decay)
    ctx.dtype = inputs[2].dtype
    ctx.save_for_backward(decay)


def _backward(namespace: str, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    (decay,) = ctx.saved_tensors
    return None, None, (grad * decay).to(ctx.dtype), None, None


declare(
    "matrix_nms",
    "(Tensor masks, Tensor labels, Tensor scores, str kernel, float sigma) -> (Tensor, Tensor)",
    reference=reference.matrix_nms,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
