"""SOLO's prediction head with its attention branch: paper sections 3.2 to 3.4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._utils.checks import is_integer
from ...ops import attention_residual
from ..attention import GridAttention
from ..layers import bilinear, conv_groups, coordinates
from ..settings import HeadSettings
from .interface import CellMasks, HeadResult

PRIOR_BIAS = -4.595  # sigmoid(PRIOR_BIAS) = 0.01


class SOLOHead(nn.Module):
    """Category branch, mask branch and attention branch, their towers shared by all levels.

    ``head(pyramid)`` is the category branch, and with ``masks="dense"`` the mask branch of every cell too;
    `cell_masks` is the mask branch of chosen cells, all that training and inference need.

    Args:
        num_classes: C, without a background class.
        in_channels: channels of the pyramid.
        settings: see `HeadSettings`; single ones may be given by name instead.

    Raises:
        ValueError: an argument outside of what is said there.
    """

    num_classes: int
    coords: Literal["paper", "inclusive"] | None
    dense: bool
    category_tower: nn.Sequential
    category_output: nn.Conv2d
    mask_tower: nn.Sequential
    mask_outputs: nn.ModuleList
    attention: GridAttention | None

    def __init__(
        self, num_classes: int, in_channels: int = 256, settings: HeadSettings | None = None, **changes: Any
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if not is_integer(value, 1):
                raise ValueError(f"SOLOHead: expected {name} to be an integer >= 1, got {value!r}")
        if settings is None:
            settings = HeadSettings.parse(changes, "SOLOHead")
        elif changes:
            raise TypeError(f"SOLOHead: expected settings or single ones, got both: {', '.join(changes)}")
        self.num_classes = num_classes
        self.num_grids: tuple[int, ...] = settings.num_grids
        self.coords = settings.coords
        self.dense = settings.masks == "dense"
        channels, convs = settings.head_channels, settings.num_convs
        self.category_tower = conv_groups(in_channels, channels, convs)
        self.category_output = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.mask_tower = conv_groups(in_channels + (2 if self.coords else 0), channels, convs)
        self.mask_outputs = nn.ModuleList(nn.Conv2d(channels, side * side, 1) for side in self.num_grids)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        for output in [self.category_output, *self.mask_outputs]:
            nn.init.constant_(output.bias, PRIOR_BIAS)
        self.attention = GridAttention(settings, in_channels) if settings.attention else None

    def forward(self, pyramid: Sequence[Tensor]) -> HeadResult:
        """The five maps P2..P6, [B, in_channels, H / s, W / s] with s = 4..64, to a `HeadResult`."""
        features = self.levels(pyramid)
        grids = self.grids(features)
        categories = tuple(self.category_output(self.category_tower(grid)) for grid in grids)
        masks = None
        if self.dense:
            pairs = enumerate(zip(features, grids, strict=True))
            masks = tuple(self.dense_mask_logits(k, x, grid) for k, (x, grid) in pairs)
        return HeadResult(categories, features, grids, masks)

    def levels(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """P2..P6 to the five maps that the branches see, of strides `STRIDES`."""
        p2, p3, p4, p5, p6 = pyramid
        halved = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
        return halved, p3, p4, p5, bilinear(p6, p5.shape[-2:])

    def grids(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each level divided into its S x S cells: [B, in_channels, S, S], V of eq. 2."""
        return tuple(bilinear(x, (side, side)) for x, side in zip(features, self.num_grids, strict=True))

    def mask_features(self, features: Tensor) -> Tensor:
        """The mask branch up to its output convolution: [B, in_channels, h, w] to [B, channels, h, w]."""
        if self.coords is not None:
            features = torch.cat([features, coordinates(features, self.coords)], dim=1)
        return self.mask_tower(features)

    def cell_masks(self, result: HeadResult, level: int, cells: Tensor) -> CellMasks:
        """Mask and attention branch of a level, for chosen cells only.

        The 1x1 output convolution and the enlarging commute, so the logits are made at half the size, and
        each needs its own cell's weights alone.

        Args:
            result: of `forward`.
            level: 0..4.
            cells: int64 [K, 2] of (image, cell = row * S + column), K >= 1.
        """
        if result.mask_logits is not None:
            logits = result.mask_logits[level]
            return CellMasks(logits[cells[:, 0], cells[:, 1]], None, (logits.shape[2], logits.shape[3]))
        # Images without a chosen cell on this level need no mask tower.
        images, position = cells[:, 0].unique(return_inverse=True)
        maps = self.mask_features(result.features[level][images])
        weights, biases = self._output(level)
        height, width = maps.shape[2:]
        rows = []
        for k, image_maps in enumerate(maps.flatten(2)):
            chosen = cells[position == k, 1]
            rows.append(torch.addmm(biases[chosen, None], weights[chosen].flatten(1), image_maps))
        order = position.argsort(stable=True).argsort()  # from grouped by image back to the cells' order
        coarse = torch.cat(rows)[order].unflatten(1, (height, width))
        attention = None
        if self.attention is not None:
            attention = self.attention(level, result.grids[level], cells).to(coarse.dtype)
        return CellMasks(coarse, attention, (2 * height, 2 * width))

    def dense_mask_logits(self, level: int, features: Tensor, grid: Tensor) -> Tensor:
        """All mask logits of a level, [B, S*S, 2h, 2w], as the paper's figure 2 draws them."""
        height, width = features.shape[2:]
        coarse = F.conv2d(self.mask_features(features), *self._output(level))
        logits = bilinear(coarse, (2 * height, 2 * width))
        if self.attention is None:
            return logits
        vectors = self.attention.vectors(level, grid)
        return attention_residual(logits, vectors.to(logits.dtype), self.attention.scale(grid))

    def _output(self, level: int) -> tuple[Tensor, Tensor]:
        """Weights [S*S, channels, 1, 1] and biases [S*S] of a level, the attention's offset included."""
        output = cast(nn.Conv2d, self.mask_outputs[level])
        bias = cast(Tensor, output.bias)
        offset = None if self.attention is None else self.attention.bias(level)
        return output.weight, bias if offset is None else bias + offset

    def mask_parameters(self) -> list[nn.Parameter]:
        """Parameters of the mask branch and the attention branch."""
        modules = [self.mask_tower, self.mask_outputs, *([] if self.attention is None else [self.attention])]
        return [parameter for module in modules for parameter in module.parameters()]
