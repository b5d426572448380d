"""Inputs as they occur: several cells draw the same object, a little differently each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

AREA = 0.036  # of the image, what a mask covers on average: 2,400 of 200 x 336 pixels
OBJECTS = 60
NUM_CLASSES = 80


def objects_of(count: int, objects: int = OBJECTS) -> Tensor:
    """Which object each of ``count`` masks draws, int64 [count]."""
    return torch.arange(count) * min(objects, max(count, 1)) // max(count, 1)


def mask_logits(count: int, size: tuple[int, int], seed: int = 0, device: str = "cpu") -> Tensor:
    """Logits of ``count`` cells [count, *size], float32, drawn on ``device``: wobbly ellipses, near-twins.

    Places and shapes are relative to the image, so that the same seed draws the same objects at any size.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(n: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    kind = objects_of(count)
    kinds = int(kind[-1]) + 1 if count else 0
    # An object's centre, axes (its area is log-uniform, a factor of 9 from the least to the largest), wobble.
    area = AREA * torch.exp(uniform(kinds, -1.1, 1.1)) / 1.08
    aspect = torch.exp(uniform(kinds, -0.5, 0.5))
    radius = torch.stack([(area * aspect / math.pi).sqrt(), (area / aspect / math.pi).sqrt()])
    margin = 0.8 * radius
    centre = margin + (1 - 2 * margin) * torch.rand(2, kinds, generator=generator)
    phase = uniform(kinds, 0, 2 * math.pi)
    # What each cell makes of it.
    centre = centre[:, kind] + 0.05 * radius[:, kind] * torch.randn(2, count, generator=generator)
    radius = radius[:, kind] * (1 + 0.05 * torch.randn(2, count, generator=generator))
    noise = torch.Generator(device).manual_seed(seed + 1)
    out = torch.empty(count, *size, device=device)
    y = (torch.arange(size[0], device=device) + 0.5) / size[0]
    x = (torch.arange(size[1], device=device) + 0.5) / size[1]
    centre, radius, phase = centre.to(device), radius.to(device), phase[kind].to(device)
    for k in range(count):
        down, right = (y - centre[0, k]) / radius[0, k], (x - centre[1, k]) / radius[1, k]
        distance = (down[:, None].square() + right[None, :].square()).sqrt()
        wobble = 1 + 0.15 * torch.sin(3 * torch.atan2(down[:, None], right[None, :]) + phase[k])
        logits = (12 * (wobble - distance)).clamp(-6, 5)
        out[k] = logits + 0.2 * torch.randn(size, generator=noise, device=device)
    return out


def masks(
    count: int, size: tuple[int, int], seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Bool [count, *size], labels int64 [count] below `NUM_CLASSES` and scores [count], in no order.

    Cells that draw one object mostly agree on its label.
    """
    drawn = mask_logits(count, size, seed, device) > 0
    generator = torch.Generator().manual_seed(seed)
    of_object = torch.randint(NUM_CLASSES, (OBJECTS,), generator=generator)[objects_of(count)]
    other = torch.randint(NUM_CLASSES, (count,), generator=generator)
    labels = torch.where(torch.rand(count, generator=generator) < 0.8, of_object, other)
    order = torch.randperm(count, generator=generator)
    scores = 0.1 + 0.9 * torch.rand(count, generator=generator)
    return drawn[order.to(device)], labels[order].to(device), scores.to(device)


def grid_features(batch: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Float32 [batch, channels, side, side], cells as vectors of length 1 as the model hands them over."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, side, side, generator=generator)
    return torch.nn.functional.normalize(features, dim=1)


def cell_logits(
    count: int, size: tuple[int, int], side: int, seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Coarse logits [count, *size] of chosen cells, and their attention rows [count, side, side] in -1..1."""
    attention = torch.tanh(mask_logits(count, (side, side), seed, device) / 4)
    return mask_logits(count, size, seed, device), attention


def mask_factors(
    count: int, size: tuple[int, int], channels: int, side: int = 0, seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Kernels [count, channels], features [1, channels, *size], images of 0, attention rows if ``side`` > 0.

    Half of the channels, `OBJECTS` at most, are objects; a cell's kernel picks one of these, with some noise.
    """
    objects = min(OBJECTS, (channels + 1) // 2)
    generator = torch.Generator(device).manual_seed(seed)
    features = torch.randn(1, channels, *size, generator=generator, device=device)
    features[0, :objects] = mask_logits(objects, size, seed, device)
    kernels = 0.02 * torch.randn(count, channels, generator=generator, device=device)
    kernels[torch.arange(count), objects_of(count, objects)] += 1
    images = torch.zeros(count, dtype=torch.int64, device=device)
    rows = torch.tanh(mask_logits(count, (side, side), seed, device) / 4) if side else None
    return kernels, features, images, rows
