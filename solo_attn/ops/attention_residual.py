"""Grid attention added to the mask branch as a residual (paper section 3.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._utils.checks import check_float, check_like, check_number, check_tensor, fail
from ..backends import tf32
from ..reference import attention_residual as reference
from ._checks import check_grid_features
from ._library import declare, overload, pick


def attention_residual(
    mask_logits: Tensor,
    grid_features: Tensor,
    scale: float = 1.0,
    inplace: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mask logits plus the enlarged grid attention of the same level (docs/method.md, "Attention").

    ``out = mask_logits + resize(grid_attention(grid_features, scale), (H, W))``, bilinear with
    align_corners=False. Differentiable in both inputs, once; the gradient of the mask logits is the
    upstream gradient itself. Where PyTorch's own matmuls of float32 on a GPU may use TensorFloat-32, so do
    the dot products, and their backward pass.

    Args:
        mask_logits: [B, S*S, H, W], the mask branch's output; a float dtype.
        grid_features: [B, C, S, S], same dtype.
        scale: multiplies every dot product.
        inplace: write over ``mask_logits``, which saves an allocation as large as it is. Autograd does not
            record it: it is for inference.
        backend: None for the fastest that can run.

    Returns:
        [B, S*S, H, W]; ``mask_logits`` itself if ``inplace``. A new one of 4 MiB or more of the backend
        "cpu" cannot be resized in place.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; ``inplace`` where a
            gradient would be needed.
        RuntimeError: the named backend cannot run.

    Example:
        >>> logits, features = torch.zeros(1, 4, 6, 6), torch.ones(1, 8, 2, 2)
        >>> attention_residual(logits, features).unique()
        tensor([8.])
    """
    op = "attention_residual"
    check_tensor(op, "mask_logits", mask_logits, "[B, S*S, H, W]")
    check_float(op, "mask_logits", mask_logits)
    check_grid_features(op, grid_features)
    check_number(op, "scale", scale)
    batch, cells, height, width = mask_logits.shape
    side = grid_features.shape[2]
    if batch != grid_features.shape[0] or cells != side * side or height == 0 or width == 0:
        fail(
            op,
            "mask_logits",
            f"of shape [B, S*S, H, W] = [{grid_features.shape[0]}, {side * side}, H, W] with H, W >= 1 "
            f"for grid_features {list(grid_features.shape)}",
            f"{list(mask_logits.shape)}",
        )
    check_like(op, "grid_features", grid_features, "mask_logits", mask_logits)
    if not inplace:
        return pick(op, mask_logits, backend)(mask_logits, grid_features, float(scale), tf32())
    if torch.is_grad_enabled() and (mask_logits.requires_grad or grid_features.requires_grad):
        fail(op, "inplace", "False where a gradient is needed (or torch.no_grad())", "True")
    pick(op, mask_logits, backend, "_")(mask_logits, grid_features, float(scale), tf32())
    return mask_logits


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, grid_features, ctx.scale, ctx.tf32 = inputs
    ctx.save_for_backward(grid_features)


def _backward(namespace: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    (grid_features,) = ctx.saved_tensors
    backward = overload(namespace, "attention_residual_bwd")
    features = backward(grad, grid_features, ctx.scale, ctx.tf32) if ctx.needs_input_grad[1] else None
    return grad, features, None, None


declare(
    "attention_residual_bwd",
    "(Tensor grad, Tensor grid_features, float scale, bool tf32=False) -> Tensor",
    reference=reference.attention_residual_bwd,
    fake=lambda grad, grid_features, *_: grid_features.new_empty(grid_features.shape),
)
declare(
    "attention_residual",
    "(Tensor mask_logits, Tensor grid_features, float scale, bool tf32=False) -> Tensor",
    reference=reference.attention_residual,
    fake=lambda mask_logits, *_: mask_logits.new_empty(mask_logits.shape),
    setup_context=_setup_context,
    backward=_backward,
)
declare(
    "attention_residual_",
    "(Tensor(a!) mask_logits, Tensor grid_features, float scale, bool tf32=False) -> ()",
    reference=reference.attention_residual_,
    fake=lambda *_: None,
)
