"""SOLO's prediction head with its attention branch: paper sections 3.2 to 3.4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import attention_residual, cell_logits, levels_in_one_launch
from ..layers import bilinear, conv_groups, rows_at, with_coordinates
from ..settings import HeadSettings
from .interface import CellMasks, Head, HeadResult


class SOLOHead(Head):
    """Each cell has an output channel of the mask branch, and its attention row is added to it.

    With ``masks="dense"``, ``head(pyramid)`` makes the masks of every cell too. Arguments as those of `Head`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("solo",)

    dense: bool
    mask_tower: nn.Sequential
    mask_outputs: nn.ModuleList

    def _make_mask_branch(self, in_channels: int, settings: HeadSettings) -> list[nn.Conv2d]:
        self.dense = settings.masks == "dense"
        channels, places = settings.head_channels, 2 if self.coords else 0
        self.mask_tower = conv_groups(in_channels + places, channels, settings.num_convs, settings.deformable)
        outputs = [nn.Conv2d(channels, side * side, 1) for side in self.num_grids]
        self.mask_outputs = nn.ModuleList(outputs)
        return outputs

    def forward(self, pyramid: Sequence[Tensor]) -> HeadResult:
        """The five maps P2..P6, [B, in_channels, H / s, W / s] with s = 4..64, to a `HeadResult`."""
        features = self.levels(pyramid)
        grids = self.grids(features)
        categories, masks = self.categories(grids), None
        if self.dense:
            pairs = enumerate(zip(features, grids, strict=True))
            masks = tuple(self.dense_mask_logits(k, x, grid) for k, (x, grid) in pairs)
        return HeadResult(categories, features, grids, masks)

    def mask_features(self, features: Tensor) -> Tensor:
        """The mask branch up to its output convolution: [B, in_channels, h, w] to [B, channels, h, w]."""
        maps: Tensor = self.mask_tower(with_coordinates(features, self.coords))
        return maps

    def _maps(self, features: Tensor) -> tuple[Tensor, ...]:
        return (self.mask_features(features),)

    def cell_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int] | None = None
    ) -> CellMasks:
        """Mask and attention branch of a level, for chosen cells only; see `Head.cell_masks`."""
        (masks,) = self.masks_of(result, {level: cells}, compared_at)
        return masks

    def masks_of(
        self, result: HeadResult, cells: Mapping[int, Tensor], compared_at: tuple[int, int] | None = None
    ) -> list[CellMasks]:
        """`cell_masks` of several levels; where no gradient is needed, a GPU makes those of all at once.

        The 1x1 output convolution and the enlarging commute, so the logits are computed at half the size,
        each with the weights of its own cell only.
        """
        if result.mask_logits is not None:
            every = [(result.mask_logits[level], chosen.unbind(1)) for level, chosen in cells.items()]
            return [CellMasks(x[at], None, (x.shape[2], x.shape[3])) for x, at in every]
        maps, pairs, weights, biases = [], [], [], []
        for level, chosen in cells.items():
            (of_level,), of_maps = self._maps_of(result, level, chosen)
            weight, bias = self._output(level)
            maps.append(of_level)
            pairs.append(of_maps)
            weights.append(weight.flatten(1))
            biases.append(bias)
        coarse = cell_logits(maps, weights, biases, pairs)
        rows: Sequence[Tensor | None] = [None] * len(coarse)
        if self.attention is not None:
            every_row = self.attention.of_levels(result.grids, cells)
            rows = [x.to(logits.dtype) for x, logits in zip(every_row, coarse, strict=True)]
        return [
            CellMasks(logits, row, (2 * logits.shape[1], 2 * logits.shape[2]))
            for logits, row in zip(coarse, rows, strict=True)
        ]

    def fixed_cells(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> CellMasks:
        """The masks of as many cells in each image; see `Head.fixed_cells`."""
        if result.mask_logits is not None:
            logits = rows_at(result.mask_logits[level], cells).flatten(0, 1)
            return CellMasks(logits, None, (logits.shape[1], logits.shape[2]))
        (maps,) = self._every_map(result, level)
        height, width = maps.shape[2:]
        weights, biases = self._output(level)
        coarse = torch.baddbmm(biases[cells][..., None], weights.flatten(1)[cells], maps.flatten(2))
        attention = None
        if self.attention is not None:
            rows = self.attention.fixed_rows(level, result.grids[level], cells)
            attention = rows.flatten(0, 1).to(coarse.dtype)
        coarse = coarse.unflatten(2, (height, width)).flatten(0, 1)
        return CellMasks(coarse, attention, (2 * height, 2 * width))

    def fixed_masks_of(
        self, result: HeadResult, cells: Mapping[int, Tensor], compared_at: tuple[int, int]
    ) -> list[CellMasks]:
        """See `Head.fixed_masks_of`."""
        if result.mask_logits is None and levels_in_one_launch(result.features[0]):
            return self.masks_of(result, cells, compared_at)
        return super().fixed_masks_of(result, cells, compared_at)

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
