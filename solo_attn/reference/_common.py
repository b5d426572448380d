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


def level_rows(coarse_logits: Sequence[Tensor], attention: Sequence[Tensor]) -> list[Tensor | None]:
    """Each level's attention rows; an empty list has none, and nor has a level whose tensor is empty."""
    rows = list(attention) or [coarse.new_empty(0) for coarse in coarse_logits]
    return [x if x.numel() else None for x in rows]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize (align_corners=False, no antialias) of [K, h, w] to [K, *size].

    A value that is infinite or NaN is in those pixels only that have a part of it, where `F.interpolate`
    multiplies it by 0 as well.
    """
    if x.shape[0] == 0:  # F.interpolate refuses it
        return x.new_zeros(0, *size)
    out = F.interpolate(x.unsqueeze(0), size=size, mode="bilinear", align_corners=False).squeeze(0)
    if _is_known_finite(out):
        return out
    exact = x
    for dim, wanted in ((2, size[1]), (1, size[0])):
        low, high, weight = _taps(exact.shape[dim], wanted, exact)
        weight = weight[:, None] if dim == 1 else weight
        near, far = exact.index_select(dim, low), exact.index_select(dim, high)
        exact = torch.where(weight == 0, near, (1 - weight) * near + weight * far)
    return torch.where(out.isfinite(), out, exact)


def resize_adjoint(grad: Tensor, size: Sequence[int]) -> Tensor:
    """The transpose of `resize` from ``size``: [K, H, W] to [K, *size]."""
    if grad.shape[0] == 0:
        return grad.new_zeros(0, *size)
    out = torch.ops.aten.upsample_bilinear2d_backward(
        grad.unsqueeze(0).contiguous(), list(grad.shape[1:]), [1, grad.shape[0], *size], False, None, None
    ).squeeze(0)
    if _is_known_finite(out):
        return out
    exact = grad
    for dim, wanted in ((2, size[1]), (1, size[0])):
        low, high, weight = _taps(wanted, exact.shape[dim], exact)
        weight = weight[:, None] if dim == 1 else weight
        near, far = exact * (1 - weight), torch.where(weight == 0, 0, exact * weight)
        exact = exact.new_zeros([*exact.shape[:dim], wanted, *exact.shape[dim + 1 :]])
        exact.index_add_(dim, low, near).index_add_(dim, high, far)
    return torch.where(out.isfinite(), out, exact)


def _is_known_finite(x: Tensor) -> bool:
    """Only looked at where that does not wait for a GPU."""
    return x.device.type == "cpu" and bool(x.isfinite().all())


def _taps(size_in: int, size_out: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """out[d] = (1 - weight[d]) in[low[d]] + weight[d] in[high[d]], in integers as csrc/common/bilinear.h."""
    place = (2 * torch.arange(size_out, device=like.device) + 1) * size_in - size_out  # of 1 / (2 size_out)
    place = place.clamp(0, 2 * size_out * (size_in - 1))
    low = place // (2 * size_out)
    weight = (place % (2 * size_out)).to(like.dtype) / (2 * size_out)
    return low, (low + 1).clamp(max=size_in - 1), weight
