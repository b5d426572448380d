"""Mask logits of chosen cells from coarse logits and attention rows (docs/method.md, "Identities")."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..reference import upsample_add as reference
from ._checks import check_coarse, check_size
from ._library import declare, overload, pick


def upsample_add(
    coarse_logits: Tensor, attention: Tensor | None, size: tuple[int, int], *, backend: str | None = None
) -> Tensor:
    """Enlarge both inputs bilinearly (align_corners=False) to ``size`` and add them.

    With a level's 1x1 output convolution applied before the enlarging, this is the mask logits of the
    chosen cells alone (docs/method.md, "Identities" steps 1 and 2). Differentiable in both inputs, once.

    Args:
        coarse_logits: [K, h, w], W_k f + b_k at the level's feature size; a float dtype.
        attention: [K, S, S], the cells' rows of `grid_attention`, same dtype; None is plain SOLO.
        size: (H, W) of the result, 2h x 2w in SOLO.
        backend: None for the fastest that can run.

    Returns:
        [K, H, W], dtype of ``coarse_logits``. One of 4 MiB or more of the backend "cpu" cannot be resized in
        place.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run.

    Example:
        >>> coarse, attention = torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 2, 2)
        >>> upsample_add(coarse, attention, (1, 4))
        tensor([[[1.0000, 1.2500, 1.7500, 2.0000]]])
    """
    op = "upsample_add"
    check_coarse(op, coarse_logits, attention)
    return pick(op, coarse_logits, backend)(coarse_logits, attention, check_size(op, "size", size))


def _fake(coarse_logits: Tensor, attention: Tensor | None, size: tuple[int, int]) -> Tensor:
    return coarse_logits.new_empty(coarse_logits.shape[0], *size)


def _fake_bwd(
    grad: Tensor, coarse_size: tuple[int, int], attention_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    count = grad.shape[0]
    return grad.new_empty(count, *coarse_size), grad.new_empty(count, *attention_size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coarse_logits, attention, _ = inputs
    ctx.coarse_size = tuple(coarse_logits.shape[1:])
    ctx.attention_size = (0, 0) if attention is None else tuple(attention.shape[1:])


def _backward(namespace: str, ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
    # (0, 0) where nobody asks for the attention's gradient.
    attention_size = ctx.attention_size if ctx.needs_input_grad[1] else (0, 0)
    coarse, rows = overload(namespace, "upsample_add_bwd")(grad, ctx.coarse_size, attention_size)
    return coarse, rows if attention_size[0] else None, None


declare(
    "upsample_add_bwd",
    "(Tensor grad, SymInt[2] coarse_size, SymInt[2] attention_size) -> (Tensor, Tensor)",
    reference=reference.upsample_add_bwd,
    fake=_fake_bwd,
)
declare(
    "upsample_add",
    "(Tensor coarse_logits, Tensor? attention, SymInt[2] size) -> Tensor",
    reference=reference.upsample_add,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
