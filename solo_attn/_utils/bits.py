"""Masks as bits, 64 pixels to a word (`mask_bits`'s reference and `BitMasks` share it); where masks are."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(masks: Tensor) -> Tensor:
    """Bool [K, P] to int64 words [K, ceil(P/64)]: bit b of word w is pixel 64 w + b.

    Args:
        masks: one row of pixels for each mask.

    Returns:
        The words; the spare bits of each mask's last word are zero.
    """
    count, pixels = masks.shape
    padded = torch.nn.functional.pad(masks.to(torch.uint8), (0, -pixels % 64))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=masks.device)
    octets = (padded.reshape(-1, 8) * weights).sum(1, dtype=torch.uint8)
    # Little-endian, as every platform of PyTorch.
    return octets.view(torch.int64).reshape(count, -(-pixels // 64))


def unpack(words: Tensor, pixels: int) -> Tensor:
    """The inverse of `pack`: int64 words [K, W] to bool [K, pixels]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    octets = words.contiguous().view(torch.uint8)
    return ((octets.unsqueeze(2) >> shifts) & 1).flatten(1)[:, :pixels].bool()


def occupied(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and the columns of masks [N, H, W], bool or uint8, that have a pixel: bool [N, H] and [N, W].

    On a CPU by NumPy, since torch's `any` reads byte by byte.
    """
    if masks.device.type != "cpu":
        return masks.any(2), masks.any(1)
    pixels = masks.numpy()
    return torch.from_numpy(pixels.any(2)), torch.from_numpy(pixels.any(1))


def span(there: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last + 1 of what is true in each row of bool [N, L]: int64 [N], 0 and L of none."""
    there = there.byte()  # argmax gives the first of equals
    return there.argmax(1), there.shape[1] - there.flip(1).argmax(1)
