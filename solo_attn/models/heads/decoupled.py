"""Decoupled SOLO (arXiv:1912.04488, section 3.4): a mask is the product of its column's and its row's map."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import bilinear, conv_groups, coordinates, joined, rows_at, with_coordinates
from ..settings import HeadSettings
from .interface import CellMasks, Head, HeadResult

_SURE = 50.0  # a logit whose sigmoid is 1 in float32, and that of its negative nearly 0


class DecoupledHead(Head):
    """2 S maps for each level, columns from one tower and rows from another, instead of S^2.

    The probability of a cell's mask is that of its column times that of its row. Arguments are those of
    `Head`; grid attention is refused, since there are no logits to add it to.
    """

    kinds: ClassVar[tuple[str, ...]] = ("decoupled",)

    column_tower: nn.Sequential
    row_tower: nn.Sequential
    column_outputs: nn.ModuleList
    row_outputs: nn.ModuleList

    def _make_mask_branch(self, in_channels: int, settings: HeadSettings) -> list[nn.Conv2d]:
        self._make_towers(in_channels, settings)
        outputs = [
            [nn.Conv2d(settings.head_channels, side, 3, padding=1) for side in self.num_grids] for _ in "xy"
        ]
        self.column_outputs, self.row_outputs = (nn.ModuleList(axis) for axis in outputs)
        return [*outputs[0], *outputs[1]]

    def _make_towers(self, in_channels: int, settings: HeadSettings) -> None:
        arguments = (
            in_channels + (1 if self.coords else 0),
            settings.head_channels,
            settings.num_convs,
            settings.deformable,
        )
        self.column_tower = conv_groups(*arguments)
        self.row_tower = conv_groups(*arguments)

    def _maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the columns' and the rows' outputs, at the features' size: [B, channels, h, w]."""
        if self.coords is None:
            return self.column_tower(features), self.row_tower(features)
        x, y = coordinates(features, self.coords).split(1, dim=1)
        columns: Tensor = self.column_tower(joined(features, x))
        rows: Tensor = self.row_tower(joined(features, y))
        return columns, rows

    def cell_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int] | None = None
    ) -> CellMasks:
        """The masks of chosen cells; see `Head.cell_masks`.

        Only the columns and rows of these cells are computed. As the probabilities of columns and rows are
        enlarged before they are multiplied, the logits are made at ``compared_at`` where it is given.
        """
        both, of_maps = self._maps_of(result, level, cells)
        position = of_maps[:, 0]
        size = (2 * both[0].shape[2], 2 * both[0].shape[3])
        axes = []
        for maps, outputs, index in zip(
            both,
            (self.column_outputs, self.row_outputs),
            (cells[:, 1] % self.num_grids[level], cells[:, 1] // self.num_grids[level]),
            strict=True,
        ):
            output = cast(nn.Conv2d, outputs[level])
            chosen, place = index.unique(return_inverse=True)
            bias = cast(Tensor, output.bias)[chosen]
            # A 3x3 convolution and enlarging do not commute.
            logits = F.conv2d(bilinear(maps, size), output.weight[chosen], bias, padding=1)
            axes.append((logits.to(torch.promote_types(logits.dtype, torch.float32)), place))
        (columns, column), (rows, row) = axes
        return _products(
            columns, rows, compared_at or size, lambda x, y: (x[position, column], y[position, row])
        )

    def fixed_cells(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> CellMasks:
        """The masks of as many cells in each image; see `Head.fixed_cells`."""
        columns, rows = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in self._every_line(result, level)
        )
        side = self.num_grids[level]
        return _products(
            columns,
            rows,
            compared_at,
            lambda x, y: (
                rows_at(x, cells % side).flatten(0, 1),
                rows_at(y, cells // side).flatten(0, 1),
            ),
        )

    def fixed_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> Tensor:
        """See `Head.fixed_masks`; probabilities are multiplied as they are."""
        columns, rows = (bilinear(x.sigmoid(), compared_at) for x in self._every_line(result, level))
        side = self.num_grids[level]
        return rows_at(columns, cells % side) * rows_at(rows, cells // side)

    def _every_line(self, result: HeadResult, level: int) -> tuple[Tensor, Tensor]:
        """Logits of all columns and of all rows, [B, S, 2h, 2w] each."""
        features = result.features[level]
        size = (2 * features.shape[2], 2 * features.shape[3])
        columns, rows = (
            cast(nn.Conv2d, outputs[level])(bilinear(maps, size))
            for maps, outputs in zip(
                self._every_map(result, level), (self.column_outputs, self.row_outputs), strict=True
            )
        )
        return columns, rows


class DecoupledLightHead(DecoupledHead):
    """`DecoupledHead` with one tower for columns and rows."""

    kinds: ClassVar[tuple[str, ...]] = ("decoupled_light",)

    mask_tower: nn.Sequential

    def _make_towers(self, in_channels: int, settings: HeadSettings) -> None:
        self.mask_tower = conv_groups(
            in_channels + (2 if self.coords else 0),
            settings.head_channels,
            settings.num_convs,
            settings.deformable,
        )

    def _maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        maps: Tensor = self.mask_tower(with_coordinates(features, self.coords))
        return maps, maps


def _products(
    columns: Tensor,
    rows: Tensor,
    compared_at: tuple[int, int],
    of_cells: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> CellMasks:
    """Masks from the logits of columns and rows; ``of_cells`` takes each cell's of maps like these."""
    size = (columns.shape[2], columns.shape[3])
    if compared_at == size:
        return CellMasks(product_logit(*of_cells(columns, rows)), None, size)
    column, row = of_cells(*(bilinear(x.sigmoid(), compared_at) for x in (columns, rows)))
    return CellMasks((column * row).logit().clamp(-_SURE, _SURE), None, compared_at)


def product_logit(x: Tensor, y: Tensor) -> Tensor:
    """The logit of sigmoid(x) sigmoid(y), of tensors of one shape.

    With 1 / sigmoid(x) = 1 + exp(-x), 1 / p - 1 is exp(-x) + exp(-y) + exp(-x - y): no overflow, and no
    probability that is rounded to 1 on the way.
    """
    return -torch.logaddexp(torch.logaddexp(-x, -y), -x - y)
