"""The features of grid cells as vectors, and their products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def vectors(features_ptr, channels, cells, at, inside, c, BLOCK_K: tl.constexpr):
    """V[c : c + BLOCK_K, at] as [BLOCK_K, len(at)], 0 where it is not ``inside``."""
    channel = c + tl.arange(0, BLOCK_K)
    mask = (channel < channels)[:, None] & inside[None, :]
    return tl.load(features_ptr + channel[:, None] * cells + at[None, :], mask=mask, other=0.0)


@triton.jit
def factor(x, PRECISION: tl.constexpr):
    """``x`` as a factor of a dot product: float32 rounded to the 10 bits of mantissa that "tf32" reads.

    The tensor cores ignore the lower bits, which makes every factor smaller: a bias of up to 2^-10, in sums
    that may have thousands of terms. Half precision has no more digits than they read.
    """
    if PRECISION == "tf32" and x.dtype == tl.float32:
        # Add half of the last digit, then truncate. NaN has no digits to add to.
        more = (x.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
        return tl.where(x == x, more, x)
    return x


def check_features(op: str, features: Tensor) -> None:
    """Refuse images with more elements than 32 bits can count."""
    if features[:1].numel() >= 1 << 31:
        raise ValueError(
            f"{op}: expected grid_features of fewer than 2^31 elements an image for backend 'triton', "
            f"got {list(features.shape)}"
        )


def mode_of(features: Tensor, tf32: bool) -> dict[str, str]:
    """How float32 factors are multiplied: exactly, or as TensorFloat-32.

    Beside features of half precision they are sums, for which TensorFloat-32 has enough digits.
    """
    return {"PRECISION": "ieee" if features.dtype == torch.float32 and not tf32 else "tf32"}
