"""The layers that branches are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

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
    x, y = (_line(side, formula, like.device, dtype) for side in (width, height))
    channels = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return channels.to(like.dtype).expand(batch, -1, -1, -1)


def _line(side: int, formula: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    i = torch.arange(side, device=device, dtype=dtype)
    if formula == "paper":
        return -1 + 2 * i / side
    # As torch.linspace computes it, from the nearer end; an exported linspace would keep the length it had.
    step = 2 / torch.sym_max(side - 1, 1)
    return torch.where(2 * i < side, -1 + step * i, 1 - step * (side - 1 - i))


def with_coordinates(features: Tensor, formula: str | None) -> Tensor:
    """``features`` [B, C, h, w] with their `coordinates` behind them, [B, C + 2, h, w]; None adds none."""
    return features if formula is None else joined(features, coordinates(features, formula))


def joined(features: Tensor, more: Tensor) -> Tensor:
    """Both of [B, C, h, w] as [B, C + C', h, w], in the order of memory of ``features``.

    What `torch.cat` joins of two orders would be of the other one.
    """
    if channels_last(features):
        more = more.contiguous(memory_format=torch.channels_last)
    return torch.cat([features, more], dim=1)


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel of ``x`` [B, C, h, w] lie side by side in memory."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """``rows`` [B, N, ...] at ``index``, int64 [B, K] in 0..N-1: [B, K, ...].

    One list of the rows of all images, as export wants it: `torch.gather` needs an index for each number.
    """
    first = torch.arange(rows.shape[0], device=index.device)[:, None] * rows.shape[1]
    chosen = rows.flatten(0, 1).index_select(0, (index + first).flatten())
    return chosen.reshape(*index.shape, *rows.shape[2:])


class _GroupNorm(nn.GroupNorm):
    """PyTorch's, which refuses groups of a single value in a batch of one: 32 channels, a map of one pixel.

    Such a value minus its mean is 0 and becomes the bias, as in a batch of two. Fewer groups would avoid the
    case, but change what trained weights compute, mmdetection's too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`nn.GroupNorm.forward` without the check."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class DeformConv(nn.Module):
    """Deformable convolution with a square kernel, a weight for each tap and no bias (DCNv2).

    Parameters have the same names as in mmdetection. Taps start at their usual places, with weight 1/2.

    Args:
        in_channels: of [B, in_channels, h, w].
        out_channels: of the result.
        kernel: side, odd.
        stride: of the result.
    """

    stride: int
    padding: int
    weight: nn.Parameter
    conv_offset: nn.Conv2d

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.conv_offset = nn.Conv2d(in_channels, 3 * kernel * kernel, kernel, stride, self.padding)
        self.straighten()

    def straighten(self) -> None:
        """Put the taps back to their usual places."""
        nn.init.zeros_(self.conv_offset.weight)
        if self.conv_offset.bias is not None:
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, out_channels, h / stride, w / stride]."""
        first, second, weight = self.conv_offset(x).chunk(3, dim=1)
        # torchvision's kernel needs one dtype, and does not support bfloat16 on a CPU.
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        offsets, taps = torch.cat([first, second], dim=1).to(dtype), weight.sigmoid().to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(
                x.to(dtype), offsets, self.weight.to(dtype), None, self.stride, self.padding, mask=taps
            )


Deformable = Literal["last", "towers", "all"]


def conv_group(
    in_channels: int, channels: int, kernel: int = 3, *, deformable: bool = False
) -> nn.Sequential:
    """[convolution without bias, GroupNorm of 32 groups, ReLU]."""
    convolution = (
        DeformConv(in_channels, channels, kernel)
        if deformable
        else nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    )
    return nn.Sequential(convolution, _GroupNorm(GROUPS, channels), nn.ReLU(inplace=True))


def conv_groups(
    in_channels: int, channels: int, count: int, deformable: Deformable | None = None
) -> nn.Sequential:
    """A tower: ``count`` times `conv_group`, one after another, of which some or all are deformable."""
    layers: list[nn.Module] = []
    for k in range(count):
        bent = deformable is not None and (deformable != "last" or k == count - 1)
        layers += conv_group(in_channels if k == 0 else channels, channels, deformable=bent)
    return nn.Sequential(*layers)
