"""Mask logits of chosen cells: both parts enlarged and added (docs/method.md, "Identities" step 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._common import resize, resize_adjoint, widen


def upsample_add(coarse_logits: Tensor, attention: Tensor | None, size: Sequence[int]) -> Tensor:
    """O_k = up(coarse_k) + up(attention_k): [K, h, w] and [K, S, S] to [K, *size]."""
    out = resize(widen(coarse_logits), size)
    if attention is not None:
        out = out + resize(widen(attention), size)
    return out.to(coarse_logits.dtype)


def upsample_add_bwd(
    grad: Tensor, coarse_size: Sequence[int], attention_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs; ``attention_size`` (0, 0) stands for no attention."""
    wide = widen(grad)
    coarse = resize_adjoint(wide, coarse_size).to(grad.dtype)
    if attention_size[0] == 0:
        return coarse, grad.new_empty(len(grad), 0, 0)
    return coarse, resize_adjoint(wide, attention_size).to(grad.dtype)
