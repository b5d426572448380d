"""The attention branch added to the mask branch like a ResNet shortcut (paper section 3.4)."""

from __future__ import annotations

from torch import Tensor

from ._common import resize, resize_adjoint, widen
from .grid_attention import grid_attention, grid_attention_bwd


def attention_residual(
    mask_logits: Tensor, grid_features: Tensor, scale: float, tf32: bool = False
) -> Tensor:
    """Mask logits [B, N, H, W] + the S x S maps of grid attention, enlarged bilinearly to H x W."""
    attention = grid_attention(widen(grid_features), scale, None)
    enlarged = resize(attention.flatten(0, 1), mask_logits.shape[2:]).reshape(mask_logits.shape)
    return (widen(mask_logits) + enlarged).to(mask_logits.dtype).contiguous()


def attention_residual_(mask_logits: Tensor, grid_features: Tensor, scale: float, tf32: bool = False) -> None:
    """The same, written over the mask logits."""
    mask_logits.copy_(attention_residual(mask_logits, grid_features, scale))


def attention_residual_bwd(grad: Tensor, grid_features: Tensor, scale: float, tf32: bool = False) -> Tensor:
    """The gradient of the grid features; that of the mask logits is ``grad`` itself."""
    batch, cells, *_ = grad.shape
    side = grid_features.shape[-1]
    rows = resize_adjoint(widen(grad).flatten(0, 1), (side, side)).reshape(batch, cells, side, side)
    return grid_attention_bwd(rows, widen(grid_features), scale, None).to(grid_features.dtype)
