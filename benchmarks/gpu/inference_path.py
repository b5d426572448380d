"""From features to masks after NMS: 500 chosen cells on five levels, against all cells in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import solo_attn
from solo_attn import BitMasks
from solo_attn.bench import plain

NUM_CLASSES = 80


@dataclass(frozen=True)
class Sizes:
    """Of the path: S and feature size of each level, cells chosen in all, channels, size of the masks."""

    sides: tuple[int, ...] = (40, 36, 24, 16, 12)
    levels: tuple[tuple[int, int], ...] = ((84, 168), (84, 168), (42, 84), (21, 42), (21, 42))
    count: int = 500
    channels: int = 256

    @property
    def out_size(self) -> tuple[int, int]:
        return 2 * self.levels[0][0], 2 * self.levels[0][1]


PAPER = Sizes()
TINY = Sizes(sides=(4, 3), levels=((6, 8), (3, 4)), count=9, channels=8)


@dataclass(frozen=True)
class Level:
    """One level of the head: mask features, grid features, the 1x1 convolution, the chosen cells."""

    features: Tensor  # [1, C, h, w]
    grid: Tensor  # [1, C, S, S]
    weight: Tensor  # [S*S, C]
    bias: Tensor  # [S*S]
    cells: Tensor  # [K, 2]

    @property
    def size(self) -> tuple[int, int]:
        return 2 * self.features.shape[2], 2 * self.features.shape[3]


@dataclass(frozen=True)
class Path:
    """Inputs of the whole path, which `lazy`, `one_by_one` and `dense` compute."""

    levels: tuple[Level, ...]
    labels: Tensor
    scores: Tensor
    out_size: tuple[int, int]

    def lazy(self, backend: str | None) -> Tensor:
        """Scores after Matrix NMS; masks as bits, of all levels at once as in `SOLO.predict`."""
        cells = [level.cells for level in self.levels]
        coarse = solo_attn.cell_logits(
            [level.features for level in self.levels],
            [level.weight for level in self.levels],
            [level.bias for level in self.levels],
            cells,
            backend=backend,
        )
        grids = [level.grid for level in self.levels]
        rows = solo_attn.grid_attention_levels(grids, 1.0, cells, backend=backend)
        parts = list(zip(coarse, rows, [level.size for level in self.levels], strict=True))
        masks = solo_attn.mask_bits_levels(parts, self.out_size, backend=backend)
        return self._suppressed(masks, backend)

    def one_by_one(self, backend: str | None) -> Tensor:
        """The same, one level after the other."""
        words, areas, maskness = [], [], []
        for level in self.levels:
            chosen = level.cells[:, 1]
            vectors = level.features[0].flatten(1)
            coarse = torch.addmm(level.bias[chosen, None], level.weight[chosen], vectors)
            coarse = coarse.unflatten(1, level.features.shape[2:])
            rows = solo_attn.grid_attention(level.grid, 1.0, level.cells, backend=backend)
            bits = solo_attn.mask_bits(coarse, rows, level.size, self.out_size, backend=backend)
            words.append(bits.words)
            areas.append(bits.areas)
            maskness.append(bits.maskness)
        masks = BitMasks(torch.cat(words), torch.cat(areas), torch.cat(maskness), self.out_size)
        return self._suppressed(masks, backend)

    def _suppressed(self, masks: BitMasks, backend: str | None) -> Tensor:
        scores = self.scores.float() * masks.maskness
        return solo_attn.matrix_nms(masks, self.labels, scores, backend=backend)

    def dense(self) -> Tensor:
        """The same as in SOLO's public versions: the maps of all cells, of which some are then chosen."""
        masks, maskness = [], []
        for level in self.levels:
            maps = F.conv2d(level.features, level.weight[:, :, None, None], level.bias)
            maps = F.interpolate(maps, size=level.size, mode="bilinear", align_corners=False)
            maps = plain.attention_residual(maps, level.grid)[0, level.cells[:, 1]].sigmoid()
            maps = F.interpolate(maps[None], size=self.out_size, mode="bilinear", align_corners=False)[0]
            mask = maps > 0.5
            area = mask.sum((1, 2)).clamp(min=1)
            masks.append(mask)
            maskness.append((maps * mask).float().sum((1, 2)) / area)
        scores = self.scores.float() * torch.cat(maskness)
        return plain.matrix_nms(torch.cat(masks), self.labels, scores)


def make(sizes: Sizes, device: str, dtype: torch.dtype) -> Path:
    """Random features whose masks are neither empty nor full; cells in proportion to the grids."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    total = sum(side**2 for side in sizes.sides)
    counts = [max(1, sizes.count * side**2 // total) for side in sizes.sides]
    counts[0] += sizes.count - sum(counts)
    levels = []
    for side, (h, w), count in zip(sizes.sides, sizes.levels, counts, strict=True):
        chosen = torch.randperm(side**2, generator=generator)[:count]
        smooth = torch.randn(1, sizes.channels, 3, 4, generator=generator)
        features = F.interpolate(smooth, size=(h, w), mode="bicubic", align_corners=False).to(device, dtype)
        levels.append(
            Level(
                features=features,
                grid=F.normalize(randn(1, sizes.channels, side, side), dim=1),
                weight=randn(side**2, sizes.channels) * sizes.channels**-0.5,
                bias=randn(side**2) * 0.1,
                cells=torch.stack([torch.zeros_like(chosen), chosen], dim=1).to(device),
            )
        )
    labels = torch.randint(NUM_CLASSES, (sizes.count,), generator=generator).to(device)
    scores = torch.rand(sizes.count, generator=generator).to(device)
    return Path(tuple(levels), labels, scores, sizes.out_size)


def agree(out: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Refuse scores that differ by more than pixels at the threshold account for.

    Raises:
        AssertionError: they do.
    """
    room: Any = 1e-3 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.float(), expected.float(), rtol=0, atol=room)
