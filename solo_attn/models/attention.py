"""The attention branch: dot products of every pair of a level's grid cells (paper sections 3.3 and 3.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import grid_attention, grid_attention_levels
from .layers import rows_at
from .settings import HeadSettings

PROJECTED = 32  # channels of a learned projection
OCTAVES = 5  # of the position's code: sines and cosines of pi x, 2 pi x, ..., 16 pi x, and of y
CODE_CHANNELS = 4 * OCTAVES


def position_code(side: int, like: Tensor) -> Tensor:
    """Fourier features of the cells' centres: [CODE_CHANNELS, S, S], of the dtype and device of ``like``."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision is rounded once, at the end
    centre = (torch.arange(side, device=like.device, dtype=dtype) + 0.5) / side
    frequency = math.pi * 2.0 ** torch.arange(OCTAVES, device=like.device, dtype=dtype)
    waves = torch.cat([(frequency[:, None] * centre).sin(), (frequency[:, None] * centre).cos()])
    x = waves[:, None, :].expand(-1, side, side)
    y = waves[:, :, None].expand(-1, side, side)
    return torch.cat([x, y]).to(like.dtype)


class GridAttention(nn.Module):
    """What the attention branch adds to the mask logits of a level's cells.

    With ``attention`` "gated" that is g (cos(V_k, V_n) - b) for cell k at cell n, enlarged to the masks. The
    gain g > 0 and b, the cosine at which the sum is 0, are learned for each level. In the ops the gain is a
    factor sqrt(g) on all vectors and -g b a bias of the logits, so the fused kernels need no change. The
    logarithm of the gain is learned, since training changes the gain by a large factor.

    Args:
        settings: ``attention``, ``attention_vectors``, ``attention_gain`` and ``attention_offset``.
        in_channels: channels of the cells' features.
    """

    log_gain: nn.Parameter
    offset: nn.Parameter
    projection: nn.Conv2d

    def __init__(self, settings: HeadSettings, in_channels: int) -> None:
        super().__init__()
        self.form, self.of = settings.attention, settings.attention_vectors
        levels = len(settings.num_grids)
        if self.form == "gated":
            self.log_gain = nn.Parameter(torch.full((levels,), math.log(settings.attention_gain)))
            self.offset = nn.Parameter(torch.full((levels,), settings.attention_offset))
        if self.of != "features":
            code = CODE_CHANNELS if self.of == "position" else 0
            self.projection = nn.Conv2d(in_channels + code, PROJECTED, 1)

    def forward(self, level: int, grid: Tensor, cells: Tensor) -> Tensor:
        """Attention rows of chosen cells, without the offset: [K, S, S].

        Args:
            level: 0..4.
            grid: [B, in_channels, S, S], the level's cells.
            cells: int64 [K, 2] of (image, cell = row * S + column).
        """
        return grid_attention(self.vectors(level, grid), self.scale(grid), cells)

    def of_levels(self, grids: Sequence[Tensor], cells: Mapping[int, Tensor]) -> list[Tensor]:
        """`forward` of several levels; where no gradient is needed, a GPU makes all rows at once."""
        vectors = [self.vectors(level, grids[level]) for level in cells]
        scale = self.scale(grids[next(iter(cells))])  # the channels of all levels are the same
        return grid_attention_levels(vectors, scale, list(cells.values()))

    def fixed_rows(self, level: int, grid: Tensor, cells: Tensor) -> Tensor:
        """`forward` of as many cells in each image, int64 [B, K], by plain operations: [B, K, S, S]."""
        vectors = self.vectors(level, grid)
        every = vectors.flatten(2)
        rows = rows_at(every.transpose(1, 2), cells) @ every * self.scale(grid)
        return rows.unflatten(2, vectors.shape[2:])

    def vectors(self, level: int, grid: Tensor) -> Tensor:
        """V of eq. 2, sqrt(g) included: [B, C, S, S]."""
        vectors = grid
        if self.of == "position":
            code = position_code(grid.shape[-1], grid).expand(grid.shape[0], -1, -1, -1)
            projected = _unit(self.projection(torch.cat([grid, code], dim=1)))
            vectors = torch.cat([projected, _unit(code).to(projected.dtype)], dim=1)
        elif self.of == "projection":
            vectors = self.projection(grid)
        if self.form in ("gated", "cosine"):
            vectors = _unit(vectors)
        if self.form == "gated":
            vectors = vectors * self.gain(level).sqrt().to(vectors.dtype)
        return vectors

    def gain(self, level: int) -> Tensor:
        """g of a level, > 0, where attention is "gated"."""
        return self.log_gain[level].exp()

    def scale(self, grid: Tensor) -> float:
        """The factor on the dot products."""
        if self.form != "rsqrt":
            return 1.0
        channels = {"features": grid.shape[1], "projection": PROJECTED, "position": PROJECTED + CODE_CHANNELS}
        return float(channels[self.of]) ** -0.5

    def bias(self, level: int) -> Tensor | None:
        """-g b, added to the level's mask logits beside the rows of `forward`; None without an offset."""
        if self.form != "gated":
            return None
        return -self.gain(level) * self.offset[level]


def _unit(vectors: Tensor) -> Tensor:
    """Vectors [B, C, S, S] of length 1; those of length 0 are unchanged."""
    # In float32: half precision's smallest number is larger than normalize's guard against 0 / 0.
    return F.normalize(vectors.float() if vectors.dtype == torch.float16 else vectors, dim=1)
