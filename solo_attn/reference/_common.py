"""What several references share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import accumulator


def widen(x: Tensor) -> Tensor:
    """``x`` in the dtype that sums are made in."""
    return x.to(accumulator(x.dtype))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize (align_corners=False, no antialias) of [K, h, w] to [K, *size]."""
    if x.shape[0] == 0:  # F.interpolate refuses it
        return x.new_zeros(0, *size)
    return F.interpolate(x.unsqueeze(0), size=size, mode="bilinear", align_corners=False).squeeze(0)


def resize_adjoint(grad: Tensor, size: Sequence[int]) -> Tensor:
    """The transpose of `resize` from ``size``: [K, H, W] to [K, *size]."""
    if grad.shape[0] == 0:
        return grad.new_zeros(0, *size)
    return torch.ops.aten.upsample_bilinear2d_backward(
        grad.unsqueeze(0).contiguous(), list(grad.shape[1:]), [1, grad.shape[0], *size], False, None, None
    ).squeeze(0)
