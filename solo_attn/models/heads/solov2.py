"""SOLOv2 (arXiv:2003.10152): a mask is its cell's kernel times features that all cells share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from ...ops import MaskFactors
from ..layers import (
    Deformable,
    bilinear,
    conv_group,
    conv_groups,
    coordinates,
    joined,
    rows_at,
    with_coordinates,
)
from ..settings import HeadSettings
from .interface import CellMasks, Head, HeadResult

FEATURE_LEVELS = 4  # of the pyramid that mask features are made of: P2..P5


class MaskFeatures(nn.Module):
    """P2..P5 to the mask features [B, out_channels, H / 4, W / 4]; P5 comes with coordinates.

    Args:
        in_channels: channels of the pyramid.
        channels: of the convolutions between, a multiple of 32.
        out_channels: E, a multiple of 32.
        coords: formula of the coordinates, None for none.
        deformable: all convolutions are.
    """

    levels: nn.ModuleList
    output: nn.Sequential

    def __init__(
        self, in_channels: int, channels: int, out_channels: int, coords: str | None, deformable: bool
    ) -> None:
        super().__init__()
        self.coords = coords
        self.levels = nn.ModuleList()
        for level in range(FEATURE_LEVELS):
            first = in_channels + (2 if coords and level == FEATURE_LEVELS - 1 else 0)
            sizes = [first, *[channels] * max(level - 1, 0)]
            self.levels.append(nn.ModuleList(conv_group(x, channels, deformable=deformable) for x in sizes))
        self.output = conv_group(channels, out_channels, 1, deformable=deformable)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Each level is brought to P2's size, doubled after each of its convolutions, and added."""
        p2, *others, last = pyramid[:FEATURE_LEVELS]
        last = with_coordinates(last, self.coords)
        first, *rest = (cast(nn.ModuleList, groups) for groups in self.levels)
        total: Tensor = first[0](p2)
        for groups, x in zip(rest, [*others, last], strict=True):
            for group in groups:
                x = group(x)
                x = bilinear(x, (2 * x.shape[2], 2 * x.shape[3]))
            total = total + x
        features: Tensor = self.output(total)
        return features


class SOLOv2Head(Head):
    """Each cell has a kernel of E numbers, and its mask logits are the kernel's products with E features.

    Both are computed only for levels with chosen cells. Grid attention adds its rows to the logits, as in
    SOLO. Arguments are those of `Head`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("solov2", "solov2_light")
    mask_strides: ClassVar[tuple[int, ...]] = (4, 4, 4, 4, 4)
    shared_cells = True

    kernel_tower: nn.Sequential
    kernel_output: nn.Conv2d
    mask_features: MaskFeatures

    def _make_mask_branch(self, in_channels: int, settings: HeadSettings) -> list[nn.Conv2d]:
        deformable: Deformable | None = settings.deformable
        channels = settings.head_channels
        self.kernel_tower = conv_groups(
            in_channels + (2 if self.coords else 0), channels, settings.num_convs, deformable
        )
        self.kernel_output = nn.Conv2d(channels, settings.kernel_channels, 3, padding=1)
        nn.init.zeros_(self.kernel_output.bias)  # type: ignore[arg-type] # made with a bias
        self.mask_features = MaskFeatures(
            in_channels,
            settings.feature_channels,
            settings.kernel_channels,
            self.coords,
            deformable == "all",
        )
        return []

    def forward(self, pyramid: Sequence[Tensor]) -> HeadResult:
        """The five maps P2..P6, [B, in_channels, H / s, W / s] with s = 4..64, to a `HeadResult`."""
        return super().forward(pyramid)._replace(pyramid=tuple(pyramid), made={})

    def prepare(self, result: HeadResult, images: Mapping[int, Tensor | None]) -> HeadResult:
        """Nothing: grids differ in size from level to level, and features are made once."""
        return result

    def cell_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int] | None = None
    ) -> CellMasks:
        """The masks of chosen cells; see `Head.cell_masks`. An image without one needs no kernels."""
        images, position = cells[:, 0].unique(return_inverse=True)
        kernels = self.kernels(result.features[level][images], result.grids[level][images])
        chosen = kernels.flatten(2).transpose(1, 2)[position, cells[:, 1]]
        features = self._features(result)
        attention = None
        if self.attention is not None:
            attention = self.attention(level, result.grids[level], cells)
            # A constant does not change when it is enlarged, so the offset takes S^2 additions instead of a
            # whole map's.
            offset = self.attention.bias(level)
            attention = (attention if offset is None else attention + offset).to(features.dtype)
        # Under autocast kernels, a convolution's result, may be of half precision where features are not.
        coarse = MaskFactors(chosen.to(features.dtype), features, cells[:, 0])
        return CellMasks(coarse, attention, (features.shape[2], features.shape[3]))

    def fixed_cells(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> CellMasks:
        """The masks of as many cells in each image; see `Head.fixed_cells`."""
        kernels = self.kernels(result.features[level], result.grids[level])
        features = self._features(result)
        height, width = features.shape[2:]
        chosen = rows_at(kernels.flatten(2).transpose(1, 2), cells).to(features.dtype)
        coarse = (chosen @ features.flatten(2)).unflatten(2, (height, width)).flatten(0, 1)
        attention = None
        if self.attention is not None:
            rows = self.attention.fixed_rows(level, result.grids[level], cells)
            offset = self.attention.bias(level)
            rows = rows if offset is None else rows + offset
            attention = rows.flatten(0, 1).to(coarse.dtype)
        return CellMasks(coarse, attention, (height, width))

    def fixed_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> Tensor:
        """See `Head.fixed_masks`; logits have stride 4 already, where masks are compared."""
        coarse, attention, size = self.fixed_cells(result, level, cells, compared_at)
        assert isinstance(coarse, Tensor)
        logits = coarse.unflatten(0, cells.shape)
        if attention is not None:
            logits = logits + bilinear(attention.unflatten(0, cells.shape), size)
        return logits.sigmoid()

    def kernels(self, features: Tensor, grid: Tensor) -> Tensor:
        """The kernel of each cell of a level, [B, E, S, S], of its features and of its grid."""
        if self.coords is not None:
            places = bilinear(coordinates(features, self.coords), grid.shape[2:])
            grid = joined(grid, places)
        kernels: Tensor = self.kernel_output(self.kernel_tower(grid))
        return kernels

    def _features(self, result: HeadResult) -> Tensor:
        """The mask features of all images, made once."""
        assert result.made is not None, "a result of this head's forward"
        if "features" not in result.made:
            result.made["features"] = self.mask_features(result.pyramid)
        return result.made["features"]
