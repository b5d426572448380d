"""The layers that branches are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import GROUPS


def bilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of [B, C, h, w] as SOLO does everywhere: align_corners=False, no antialias."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def coordinates(like: Tensor, formula: str) -> Tensor:
    """The two coordinate channels (x, y) of ``like`` [B, C, h, w]: [B, 2, h, w].

    "paper" is eq. 1, x = -1 + 2 i / w; "inclusive" has both ends, linspace(-1, 1, w), as mmdetection does.
    """
    batch, _, height, width = like.shape
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision is rounded once, at the end
    if formula == "paper":
        x = -1 + 2 * torch.arange(width, device=like.device, dtype=dtype) / width
        y = -1 + 2 * torch.arange(height, device=like.device, dtype=dtype) / height
    else:
        x = torch.linspace(-1, 1, width, device=like.device, dtype=dtype)
        y = torch.linspace(-1, 1, height, device=like.device, dtype=dtype)
    channels = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return channels.to(like.dtype).expand(batch, -1, -1, -1)


class _GroupNorm(nn.GroupNorm):
    """PyTorch's, which of a batch of one refuses groups of a single value: 32 channels, a map of one pixel.

    Such a value less its mean is 0 and becomes the bias, as it does in a batch of two. Fewer groups would
    spare the case, but make other models of trained weights, mmdetection's too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`nn.GroupNorm.forward` without the check."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def conv_groups(in_channels: int, channels: int, count: int) -> nn.Sequential:
    """``count`` groups of [3x3 convolution without bias, GroupNorm of 32 groups, ReLU]."""
    layers: list[nn.Module] = []
    for k in range(count):
        layers += [
            nn.Conv2d(in_channels if k == 0 else channels, channels, 3, padding=1, bias=False),
            _GroupNorm(GROUPS, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
