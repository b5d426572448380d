"""Coarse logits to thresholded masks, areas and maskness (docs/method.md, "Inference" steps 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.bits import pack, unpack
from .._utils.checks import accumulator, as_bool
from ._common import level_rows, resize, widen
from ._factors import product
from .upsample_add import upsample_add

_CHUNK = 64  # masks whose probabilities are held at a time
_PART = 2**22  # pixels of masks that are packed at a time: sums of bool are made of int64 copies


def probability_maps(
    coarse_logits: Tensor, attention: Tensor | None, size: Sequence[int], out_size: Sequence[int]
) -> Tensor:
    """sigmoid at the level's own ``size``, only **then** enlarged to ``out_size``: [K, *out_size]."""
    wide_attention = None if attention is None else widen(attention)
    return resize(upsample_add(widen(coarse_logits), wide_attention, size).sigmoid(), out_size)


def mask_bits(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Words [K, ceil(H*W/64)], areas [K] and maskness [K] of m = p > threshold."""
    count, pixels = len(coarse_logits), out_size[0] * out_size[1]
    words = coarse_logits.new_empty(count, -(-pixels // 64), dtype=torch.int64)
    areas = coarse_logits.new_empty(count, dtype=torch.int64)
    maskness = coarse_logits.new_empty(count, dtype=accumulator(coarse_logits.dtype))
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = None if attention is None else attention[part]
        maps = probability_maps(coarse_logits[part], rows, size, out_size).flatten(1)
        masks = maps > threshold
        words[part] = pack(masks)
        areas[part] = masks.sum(1)
        # An empty mask has a maskness of 0, not 0 / 0.
        maskness[part] = maps.where(masks, 0).sum(1) / areas[part].clamp(min=1)
    return words, areas, maskness


def mask_bits_factors(
    kernels: Tensor, features: Tensor, images: Tensor, attention: Tensor | None, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of ``kernels[k] . features[images[k]]``, at the size of the features."""
    size = features.shape[2:]
    found = []
    for start in range(0, max(len(kernels), 1), _CHUNK):
        part = slice(start, start + _CHUNK)
        logits = product("mask_bits", kernels[part], features, images[part])
        found.append(mask_bits(logits, None if attention is None else attention[part], size, size, threshold))
    words, areas, maskness = zip(*found, strict=True)
    return torch.cat(words), torch.cat(areas), torch.cat(maskness)


def mask_bits_levels(
    coarse_logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    sizes: Sequence[int],
    out_size: Sequence[int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of several levels, one after the other; ``sizes`` has two numbers for each."""
    given = zip(coarse_logits, level_rows(coarse_logits, attention), sizes[::2], sizes[1::2], strict=True)
    found = [
        mask_bits(coarse, rows, (height, width), out_size, threshold) for coarse, rows, height, width in given
    ]
    words, areas, maskness = zip(*found, strict=True)
    return torch.cat(words), torch.cat(areas), torch.cat(maskness)


def mask_bits_pack(masks: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Words [K, ceil(pixels/64)] and areas [K] of masks [K, pixels], bool or uint8; of those at ``index``."""
    taken = masks if index is None else masks[index]
    parts = as_bool(taken).split(max(1, _PART // max(1, masks.shape[1])))
    return torch.cat([pack(part) for part in parts]), torch.cat([part.sum(1) for part in parts])


def mask_bits_unpack(words: Tensor, index: Tensor | None, pixels: int) -> Tensor:
    """Bool [K, pixels] of words; of those at ``index``."""
    return unpack(words if index is None else words[index], pixels)
