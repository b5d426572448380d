"""The interface of heads to losses and inference, which do not depend on the kind of head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..._utils.checks import is_integer
from ...ops import MaskFactors
from ..attention import GridAttention
from ..layers import DeformConv, bilinear, conv_groups
from ..settings import HeadSettings
from ..targets import MASK_STRIDES

# P2 is halved and P6 enlarged to P5's size, so these are the strides of what a head sees.
STRIDES = (8, 8, 16, 32, 32)
PRIOR_BIAS = -4.595  # sigmoid(PRIOR_BIAS) = 0.01


class Maps(NamedTuple):
    """What the mask branch makes of a level's images before cells are chosen.

    Attributes:
        images: int64 [n], ascending; None for all of the batch.
        maps: the branch's outputs, each [n, channels, h, w].
    """

    images: Tensor | None
    maps: tuple[Tensor, ...]


class HeadResult(NamedTuple):
    """The output of a head before cells are chosen; a tuple has one entry for each level.

    Attributes:
        category_logits: [B, C, S, S].
        features: [B, in_channels, h, w], what the mask branch sees.
        grids: [B, in_channels, S, S], the features of the cells.
        mask_logits: [B, S*S, 2h, 2w] with ``masks="dense"``, else None.
        pyramid: P2..P6, if the head makes its masks from these.
        made: what a head computes from the pyramid for all levels when masks are first needed.
        maps: of the levels that `Head.prepare` was asked for.
    """

    category_logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    grids: tuple[Tensor, ...]
    mask_logits: tuple[Tensor, ...] | None = None
    pyramid: tuple[Tensor, ...] = ()
    made: dict[str, Tensor] | None = None
    maps: Mapping[int, Maps] | None = None

    @property
    def compared_at(self) -> tuple[int, int]:
        """(height, width) of stride 4, at which the masks of all levels are compared.

        Level 1 is P3 itself, of stride 8; its logits have twice its size.
        """
        return 2 * self.features[1].shape[2], 2 * self.features[1].shape[3]


class CellMasks(NamedTuple):
    """The parts of chosen cells' masks.

    Attributes:
        coarse_logits: [K, h, w], or the factors of their product, which ops take as well.
        attention: [K, S, S], or None without attention.
        size: (height, width) of the masks' logits, to which both are enlarged and added.
    """

    coarse_logits: Tensor | MaskFactors
    attention: Tensor | None
    size: tuple[int, int]


class Head(nn.Module):
    """A prediction head: a category branch, a mask branch and an attention branch, shared by all levels.

    ``head(pyramid)`` is the category branch; `cell_masks` is the mask branch of chosen cells, all that
    training and inference need.

    Args:
        num_classes: C, without a background class.
        in_channels: channels of the pyramid.
        settings: see `HeadSettings`; single ones may be given by name instead.

    Attributes:
        kinds: values of ``head`` in the settings that this class is for, the first one its default.
        mask_strides: of each level's masks, as losses see them.
        shared_cells: a cell learns the masks of all objects in whose centre regions it is.
        num_grids: S of each level.

    Raises:
        ValueError: an argument outside of what is said there.
    """

    kinds: ClassVar[tuple[str, ...]]
    mask_strides: ClassVar[tuple[int, ...]] = MASK_STRIDES
    shared_cells: ClassVar[bool] = False

    num_classes: int
    num_grids: tuple[int, ...]
    coords: Literal["paper", "inclusive"] | None
    category_tower: nn.Sequential
    category_output: nn.Conv2d
    attention: GridAttention | None

    def __init__(
        self, num_classes: int, in_channels: int = 256, settings: HeadSettings | None = None, **changes: Any
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if not is_integer(value, 1):
                raise ValueError(f"{name}: expected {argument} to be an integer >= 1, got {value!r}")
        if settings is None:
            settings = HeadSettings.parse({"head": self.kinds[0], **changes}, name)
        elif changes:
            raise TypeError(f"{name}: expected settings or single ones, got both: {', '.join(changes)}")
        if settings.head not in self.kinds:
            raise ValueError(f"{name}: expected head to be {' or '.join(self.kinds)}, got {settings.head!r}")
        self.num_classes = num_classes
        self.num_grids = settings.num_grids
        self.coords = settings.coords
        channels = settings.head_channels
        self.category_tower = conv_groups(in_channels, channels, settings.num_convs, settings.deformable)
        self.category_output = nn.Conv2d(channels, num_classes, 3, padding=1)
        outputs = self._make_mask_branch(in_channels, settings)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, DeformConv)):
                nn.init.normal_(module.weight, std=0.01)
        for module in self.modules():
            if isinstance(module, DeformConv):
                module.straighten()
        for output in [self.category_output, *outputs]:
            nn.init.constant_(output.bias, PRIOR_BIAS)  # type: ignore[arg-type] # made with a bias
        self.attention = GridAttention(settings, in_channels) if settings.attention else None

    def _make_mask_branch(self, in_channels: int, settings: HeadSettings) -> list[nn.Conv2d]:
        """Make its modules; returns the convolutions that give logits of the prior 0.01."""
        raise NotImplementedError

    def forward(self, pyramid: Sequence[Tensor]) -> HeadResult:
        """The five maps P2..P6, [B, in_channels, H / s, W / s] with s = 4..64, to a `HeadResult`."""
        features = self.levels(pyramid)
        grids = self.grids(features)
        return HeadResult(self.categories(grids), features, grids)

    def prepare(self, result: HeadResult, images: Mapping[int, Tensor | None]) -> HeadResult:
        """``result`` with the maps that masks of some levels are made of.

        The mask branch's tower is shared by all levels and none of its layers mixes images, so levels of one
        size are one batch: P2, which is halved, and P3; P5 and P6. `cell_masks` prepares its own level if
        that was not done before.

        Args:
            result: of `forward`.
            images: of each level with chosen cells, int64 [n], ascending; None for all of the batch.
        """
        if result.mask_logits is not None:
            return result  # all masks are made already
        levels_of: dict[torch.Size, list[int]] = {}
        for level in images:
            levels_of.setdefault(result.features[level].shape[2:], []).append(level)
        maps: dict[int, Maps] = {}
        for levels in levels_of.values():
            inputs = [_those(result.features[level], images[level]) for level in levels]
            counts = [len(x) for x in inputs]
            outputs = self._maps(torch.cat(inputs) if len(inputs) > 1 else inputs[0])
            parts = zip(*(x.split(counts) for x in outputs), strict=True)
            maps |= {level: Maps(images[level], part) for level, part in zip(levels, parts, strict=True)}
        return result._replace(maps=maps)

    def _maps(self, features: Tensor) -> tuple[Tensor, ...]:
        """The mask branch up to its outputs: [B, in_channels, h, w] to maps [B, channels, h, w]."""
        raise NotImplementedError

    def _every_map(self, result: HeadResult, level: int) -> tuple[Tensor, ...]:
        """`Maps.maps` of all images of a level, prepared or not."""
        if result.maps is not None and level in result.maps and result.maps[level].images is None:
            return result.maps[level].maps
        return self._maps(result.features[level])

    def _maps_of(self, result: HeadResult, level: int, cells: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """`Maps.maps` of a level, and its cells [K, 2] with the number of the map in place of the image's."""
        if result.maps is None or level not in result.maps:
            result = self.prepare(result, {level: cells[:, 0].unique()})
        assert result.maps is not None
        images, maps = result.maps[level]
        if images is None:
            return maps, cells
        position = torch.searchsorted(images, cells[:, 0].contiguous())
        return maps, torch.stack([position, cells[:, 1]], dim=1)

    def cell_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int] | None = None
    ) -> CellMasks:
        """The masks of chosen cells only.

        Args:
            result: of `forward`, or of `prepare`.
            level: 0..4.
            cells: int64 [K, 2] of (image, cell = row * S + column), K >= 1.
            compared_at: (height, width) that inference enlarges probabilities to; None for losses. Only heads
                whose probabilities are not those of enlarged logits give another result for it.
        """
        raise NotImplementedError

    def masks_of(
        self, result: HeadResult, cells: Mapping[int, Tensor], compared_at: tuple[int, int] | None = None
    ) -> list[CellMasks]:
        """`cell_masks` of several levels, in the order of ``cells``, which has each level's."""
        return [self.cell_masks(result, level, chosen, compared_at) for level, chosen in cells.items()]

    def fixed_cells(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> CellMasks:
        """`cell_masks` of as many cells in each image, by operations that a graph can hold.

        Sizes depend on those of the arguments alone, so there are masks of cells that nobody asked for, and
        nothing waits for the device. Only operations that torch.export can write as ONNX's.

        Args:
            result: of `forward`.
            level: 0..4.
            cells: int64 [B, K], row * S + column.
            compared_at: as in `cell_masks`.

        Returns:
            Parts of B * K masks, image by image; coarse logits are a tensor.
        """
        raise NotImplementedError

    def fixed_masks_of(
        self, result: HeadResult, cells: Mapping[int, Tensor], compared_at: tuple[int, int]
    ) -> list[CellMasks]:
        """`fixed_cells` of several levels, whose operations need not be ONNX's.

        Args:
            result: of `forward`.
            cells: of each level int64 [B * K, 2] of (image, cell), K of each image, image by image.
            compared_at: as in `cell_masks`.
        """
        batch = len(result.features[0])
        return [
            self.fixed_cells(result, level, chosen[:, 1].unflatten(0, (batch, -1)), compared_at)
            for level, chosen in cells.items()
        ]

    def fixed_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int]
    ) -> Tensor:
        """Mask probabilities of `fixed_cells`, enlarged to ``compared_at``: [B, K, *compared_at]."""
        coarse, attention, size = self.fixed_cells(result, level, cells, compared_at)
        assert isinstance(coarse, Tensor)
        logits = bilinear(coarse.unflatten(0, cells.shape), size)
        if attention is not None:
            logits = logits + bilinear(attention.unflatten(0, cells.shape), size)
        return bilinear(logits.sigmoid(), compared_at)

    def levels(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """P2..P6 to the five maps that the branches see, of strides `STRIDES`."""
        p2, p3, p4, p5, p6 = pyramid
        halved = bilinear(p2, (p2.shape[2] // 2, p2.shape[3] // 2))
        return halved, p3, p4, p5, bilinear(p6, p5.shape[-2:])

    def grids(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each level divided into its S x S cells: [B, in_channels, S, S], V of eq. 2."""
        return tuple(bilinear(x, (side, side)) for x, side in zip(features, self.num_grids, strict=True))

    def categories(self, grids: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The category branch: logits [B, C, S, S] of each level."""
        return tuple(self.category_output(self.category_tower(grid)) for grid in grids)

    def mask_parameters(self) -> list[nn.Parameter]:
        """Parameters that only masks use: of the mask branch and the attention branch."""
        named = self.named_parameters()
        return [parameter for name, parameter in named if not name.startswith("category_")]


def _those(features: Tensor, images: Tensor | None) -> Tensor:
    """``features`` of some images, without a copy if these are all."""
    return features if images is None or len(images) == len(features) else features[images]
