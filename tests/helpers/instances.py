"""Instances of an image as a model returns them, without a model."""

from __future__ import annotations

import torch

from solo_attn.models.inference import boxes_of

NAMES = ["person", "rider", "car"]


def found(count: int = 5, seed: int = 0, size: tuple[int, int] = (40, 50)) -> dict[str, torch.Tensor]:
    """Squares at random places, the best first."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, side - 15, (), generator=generator)) for side in size)
        mask[y : y + 15, x : x + 12] = True
    return {
        "boxes": boxes_of(masks),
        "labels": torch.randint(0, len(NAMES), (count,), generator=generator),
        "scores": torch.rand(count, generator=generator).sort(descending=True).values,
        "masks": masks,
    }
