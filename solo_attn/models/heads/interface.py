"""What a head gives to losses and inference: neither depends on the kind of head."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

# P2 is halved and P6 enlarged to P5's size, so these are the strides of what a head sees.
STRIDES = (8, 8, 16, 32, 32)


class HeadResult(NamedTuple):
    """What a head makes of the pyramid before anybody has chosen cells; a tuple holds one entry a level.

    Attributes:
        category_logits: [B, C, S, S].
        features: [B, in_channels, h, w], what the mask branch sees.
        grids: [B, in_channels, S, S], the features of the cells.
        mask_logits: [B, S*S, 2h, 2w] with ``masks="dense"``, else None.
    """

    category_logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    grids: tuple[Tensor, ...]
    mask_logits: tuple[Tensor, ...] | None = None


class CellMasks(NamedTuple):
    """What the masks of chosen cells are made of.

    Attributes:
        coarse_logits: [K, h, w].
        attention: [K, S, S], or None without attention.
        size: (height, width) of the level's mask logits, to which both are enlarged and added.
    """

    coarse_logits: Tensor
    attention: Tensor | None
    size: tuple[int, int]


class Head(Protocol):
    """A prediction head.

    Attributes:
        num_classes: C.
        num_grids: S of each level.
    """

    num_classes: int
    num_grids: tuple[int, ...]

    def __call__(self, pyramid: list[Tensor]) -> HeadResult:
        """Category logits, and what masks are made of."""
        ...

    def cell_masks(self, result: HeadResult, level: int, cells: Tensor) -> CellMasks:
        """The masks of chosen cells, int64 [K, 2] of (image, cell = row * S + column), K >= 1."""
        ...

    def mask_parameters(self) -> list[nn.Parameter]:
        """Parameters that only masks use."""
        ...
