"""Masks as bits: what `mask_bits` makes and `matrix_nms` reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.checks import check_tensor, fail, is_size
from .._utils.text import shown
from ._library import pick


class BitMasks(NamedTuple):
    """K binary masks of one size, 64 pixels to a word.

    Attributes:
        words: int64 [K, ceil(H*W/64)]; bit b of word w is pixel 64 w + b in row-major order, the spare bits
            of the last word are zero.
        areas: int64 [K], pixels set.
        maskness: [K], mean probability inside the mask, 0 where it is empty (docs/method.md, "Inference"
            step 4).
        size: (H, W).
    """

    words: Tensor
    areas: Tensor
    maskness: Tensor
    size: tuple[int, int]

    @classmethod
    def from_bool(cls, masks: Tensor, index: Tensor | None = None) -> BitMasks:
        """Pack bool or uint8 masks [K, H, W]; their maskness is 1 (0 where empty).

        ``index`` (int64 [k], in 0..K-1) says which, and in what order; None is all.

        Raises:
            TypeError, ValueError: ``masks`` is not a bool or uint8 tensor [K, H, W].
        """
        check_tensor("BitMasks.from_bool", "masks", masks, "[K, H, W]")
        if masks.dtype not in (torch.bool, torch.uint8):
            fail("BitMasks.from_bool", "masks", "of dtype bool or uint8", str(masks.dtype))
        words, areas = pack_masks(masks.flatten(1), index)
        return cls(words, areas, (areas > 0).float(), (masks.shape[1], masks.shape[2]))

    def to_bool(self, index: Tensor | None = None) -> Tensor:
        """Bool [K, H, W]; of the masks at ``index`` (int64 [k], in 0..K-1) if it is given.

        One of 4 MiB or more on a CPU cannot be resized in place.
        """
        height, width = self.size
        masks = unpack_masks(self.words, height * width, index)
        return masks.reshape(len(masks), height, width)

    def select(self, index: Tensor) -> BitMasks:
        """The masks at ``index`` (int64 or bool [...])."""
        return BitMasks(self.words[index], self.areas[index], self.maskness[index], self.size)


def pack_masks(masks: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Words and areas, as in `BitMasks`, of bool or uint8 masks [n, pixels].

    Of all of them, or of those at ``index`` (int64 [k], in 0..n-1).
    """
    words, areas = pick("mask_bits", masks, None, "_pack", dtype=torch.float32)(masks, index)
    return words, areas


def unpack_masks(words: Tensor, pixels: int, index: Tensor | None = None) -> Tensor:
    """Bool [n, pixels] of these words: of all masks, or of those at ``index`` (int64 [k], in 0..n-1)."""
    masks: Tensor = pick("mask_bits", words, None, "_unpack", dtype=torch.float32)(words, index, pixels)
    return masks


def mask_rows(op: str, argument: str, masks: Tensor | BitMasks) -> tuple[Tensor, tuple[int, int]]:
    """One row for each mask, as ops take them (pixels or words), and (H, W).

    Raises:
        TypeError, ValueError: ``masks`` is neither a bool or uint8 tensor [n, H, W] nor BitMasks.
    """
    if isinstance(masks, BitMasks):
        return _words(op, argument, masks), (masks.size[0], masks.size[1])
    check_tensor(op, argument, masks, "[n, H, W]")
    if masks.dtype not in (torch.bool, torch.uint8):
        fail(op, argument, "of dtype bool or uint8, or BitMasks", str(masks.dtype))
    return masks.flatten(1), (masks.shape[1], masks.shape[2])


def _words(op: str, argument: str, masks: BitMasks) -> Tensor:
    """The words, if they are as many as ``size`` says: kernels read them without asking."""
    size = masks.size
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(is_size(n) for n in size):
        fail(op, f"{argument}.size", "to be (H, W) in integers", shown(size))
    check_tensor(op, f"{argument}.words", masks.words, "[K, W]")
    words = -(-size[0] * size[1] // 64)
    if masks.words.dtype != torch.int64 or masks.words.shape[1] != words:
        got = f"{masks.words.dtype} {list(masks.words.shape)}"
        fail(op, f"{argument}.words", f"int64 of shape [K, {words}] as its size {tuple(size)} needs", got)
    return masks.words
