"""The prediction head with its attention branch: paper sections 3.2 to 3.4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import is_finite, is_integer
from ..ops import attention_residual, grid_attention

# Spec 2: P2 is halved and P6 enlarged to P5's size, so these are the strides of what the head sees.
STRIDES = (8, 8, 16, 32, 32)
COORDINATES = ("paper", "inclusive")
GROUPS = 32  # of GroupNorm
PRIOR_BIAS = -4.595  # sigmoid(PRIOR_BIAS) = 0.01


class CellMasks(NamedTuple):
    """What the masks of chosen cells are made of (spec 4.2).

    Attributes:
        coarse_logits: [K, h, w].
        attention: [K, S, S], or None without attention.
        size: (2h, 2w), the size of the level's mask logits.
    """

    coarse_logits: Tensor
    attention: Tensor | None
    size: tuple[int, int]


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


def _are_grids(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == len(STRIDES)
        and all(is_integer(side, 1) for side in value)
    )


class SOLOHead(nn.Module):
    """Category branch, mask branch and attention branch, their towers shared by all levels.

    Args:
        num_classes: C, without a background class.
        in_channels: channels of the pyramid.
        channels: channels of the towers, a multiple of 32.
        num_convs: groups in each tower.
        num_grids: S of each level (Table 2); at least 2 with 32 channels.
        coords: "paper", "inclusive" or None: the coordinate channels of the mask branch.
        attention: add the attention branch.
        attention_scale: what multiplies the dot products: a number (1 is the paper's literal reading),
            "rsqrt" for C^-1/2, or "cosine" for dot products of vectors of length 1, times
            ``cosine_factor``. docs/results.md says why the last is the default.
        cosine_factor: the largest attention with "cosine"; > 0. Any other scale has no use for it: 1.

    Raises:
        ValueError: an argument outside of what is said above.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 256,
        channels: int = 256,
        num_convs: int = 7,
        num_grids: Sequence[int] = (40, 36, 24, 16, 12),
        coords: str | None = "paper",
        attention: bool = True,
        attention_scale: float | str = "cosine",
        cosine_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if not is_integer(num_classes, 1):
            raise ValueError(f"SOLOHead: expected num_classes to be an integer >= 1, got {num_classes!r}")
        if not is_integer(channels, 1) or channels % GROUPS:
            raise ValueError(
                f"SOLOHead: expected channels to be a multiple of 32 (GroupNorm), got {channels!r}"
            )
        if not is_integer(num_convs, 1):
            raise ValueError(f"SOLOHead: expected num_convs to be an integer >= 1, got {num_convs!r}")
        if not _are_grids(num_grids):
            raise ValueError(f"SOLOHead: expected num_grids to be five integers >= 1, got {num_grids!r}")
        # The category branch of such a level would say the same of every image, and never learn.
        if channels == GROUPS and min(num_grids) == 1:
            raise ValueError(
                "SOLOHead: expected num_grids to be at least 2 with channels 32 (GroupNorm makes the same of "
                f"any single value), got {num_grids!r}"
            )
        if coords is not None and coords not in COORDINATES:
            raise ValueError(
                f"SOLOHead: expected coords to be one of {', '.join(COORDINATES)} or None, got {coords!r}"
            )
        if attention_scale not in ("rsqrt", "cosine") and not is_finite(attention_scale):
            raise ValueError(
                "SOLOHead: expected attention_scale to be a finite number, 'rsqrt' or 'cosine', "
                f"got {attention_scale!r}"
            )
        if not is_finite(cosine_factor) or cosine_factor <= 0:
            raise ValueError(
                f"SOLOHead: expected cosine_factor to be a finite number > 0, got {cosine_factor!r}"
            )
        if cosine_factor != 1 and attention_scale != "cosine":
            raise ValueError(
                f"SOLOHead: expected cosine_factor to be 1 with attention_scale {attention_scale!r}, "
                f"got {cosine_factor!r}"
            )
        self.num_classes = num_classes
        self.num_grids = tuple(num_grids)
        self.coords = coords
        self.attention = attention
        self.attention_scale = attention_scale
        self.cosine_factor = cosine_factor
        self.category_tower = conv_groups(in_channels, channels, num_convs)
        self.category_output = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.mask_tower = conv_groups(in_channels + (2 if coords else 0), channels, num_convs)
        self.mask_outputs = nn.ModuleList(nn.Conv2d(channels, side * side, 1) for side in self.num_grids)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        for output in [self.category_output, *self.mask_outputs]:
            nn.init.constant_(output.bias, PRIOR_BIAS)

    def levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """P2..P6 to the five maps that the branches see, of strides `STRIDES` (spec 2)."""
        p2, p3, p4, p5, p6 = pyramid
        halved = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
        return [halved, p3, p4, p5, bilinear(p6, p5.shape[-2:])]

    def grids(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Each level divided into its S x S cells: [B, in_channels, S, S], V of eq. 2."""
        return [bilinear(x, (side, side)) for x, side in zip(levels, self.num_grids, strict=True)]

    def category_logits(self, grids: Sequence[Tensor]) -> list[Tensor]:
        """The category branch: [B, C, S, S] for each level."""
        return [self.category_output(self.category_tower(grid)) for grid in grids]

    def mask_features(self, features: Tensor) -> Tensor:
        """The mask branch up to its output convolution: [B, in_channels, h, w] to [B, channels, h, w]."""
        if self.coords is not None:
            features = torch.cat([features, coordinates(features, self.coords)], dim=1)
        return self.mask_tower(features)

    def cell_masks(self, level: int, features: Tensor, grid: Tensor, cells: Tensor) -> CellMasks:
        """Mask and attention branch of a level, for chosen cells only (spec 4.1, 4.2).

        Args:
            level: 0..4.
            features: [B, in_channels, h, w], the level's map.
            grid: [B, in_channels, S, S], the level's cells.
            cells: int64 [K, 2] of (image, cell = row * S + column), K >= 1.
        """
        # Images without a chosen cell on this level need no mask tower.
        images, position = cells[:, 0].unique(return_inverse=True)
        maps = self.mask_features(features[images])
        output = cast(nn.Conv2d, self.mask_outputs[level])
        height, width = maps.shape[2:]
        rows = []
        for k, image_maps in enumerate(maps.flatten(2)):
            chosen = cells[position == k, 1]
            weight, bias = output.weight[chosen].flatten(1), cast(Tensor, output.bias)[chosen]
            rows.append(torch.addmm(bias[:, None], weight, image_maps))
        order = position.argsort(stable=True).argsort()  # from grouped by image back to the cells' order
        coarse = torch.cat(rows)[order].unflatten(1, (height, width))
        attention = None
        if self.attention:
            vectors, scale = self._attention_vectors(grid)
            attention = grid_attention(vectors, scale, cells).to(coarse.dtype)
        return CellMasks(coarse, attention, (2 * height, 2 * width))

    def dense_mask_logits(self, level: int, features: Tensor, grid: Tensor) -> Tensor:
        """All mask logits of a level, [B, S*S, 2h, 2w], as the paper's figure 2 draws them.

        Neither training nor inference needs them; they are `cell_masks` of every cell, enlarged.
        """
        height, width = features.shape[2:]
        logits = bilinear(self.mask_outputs[level](self.mask_features(features)), (2 * height, 2 * width))
        if not self.attention:
            return logits
        vectors, scale = self._attention_vectors(grid)
        return attention_residual(logits, vectors.to(logits.dtype), scale)

    def _attention_vectors(self, grid: Tensor) -> tuple[Tensor, float]:
        if self.attention_scale == "cosine":
            # In float32: half precision's smallest number is larger than normalize's guard against 0 / 0.
            vectors = F.normalize(grid.float() if grid.dtype == torch.float16 else grid, dim=1)
            return vectors, float(self.cosine_factor)
        if self.attention_scale == "rsqrt":
            return grid, grid.shape[1] ** -0.5
        return grid, float(self.attention_scale)
