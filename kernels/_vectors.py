"""The features of grid cells as vectors, and how they are multiplied."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def vectors(features, channels, cells, at, inside, c, BLOCK_K: tl.constexpr):
    """V[c : c + BLOCK_K, at] as [BLOCK_K, len(at)], 0 where it is not ``inside``."""
    channel = c + tl.arange(0, BLOCK_K)
    mask = (channel < channels)[:, None] & inside[None, :]
    return tl.load(features + channel[:, None] * cells + at[None, :], mask=mask, other=0.0)


def check_features(op: str, features: Tensor) -> None:
    """Refuse images whose elements 32 bits do not count."""
    if features[:1].numel() >= 1 << 31:
        raise ValueError(
            f"{op}: expected grid_features of fewer than 2^31 elements an image for backend 'triton', "
            f"got {list(features.shape)}"
        )


def mode_of(features: Tensor, tf32: bool) -> dict[str, str]:
    """How float32 factors are multiplied: of half precision they are sums, and tf32 has its digits."""
    return {"PRECISION": "ieee" if features.dtype == torch.float32 and not tf32 else "tf32"}
