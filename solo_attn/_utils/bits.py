"""Masks as bits, 64 pixels to a word: what the reference of `mask_bits` and `BitMasks` share."""

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
