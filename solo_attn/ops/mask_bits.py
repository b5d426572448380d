"""Masks as bits, areas and maskness in one pass over the logits (docs/method.md, "Identities" step 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.checks import accumulator
from ..reference import mask_bits as reference
from ._checks import attention_of, can_be_joined, check_coarse, check_levels, check_size, check_threshold
from ._library import declare, pick, pick_form
from .bit_masks import BitMasks
from .mask_factors import MaskFactors

Level = tuple[Tensor | MaskFactors, Tensor | None, tuple[int, int]]


def mask_bits(
    coarse_logits: Tensor | MaskFactors,
    attention: Tensor | None,
    size: tuple[int, int],
    out_size: tuple[int, int],
    threshold: float = 0.5,
    *,
    backend: str | None = None,
) -> BitMasks:
    """Masks, areas and maskness of chosen cells (docs/method.md, "Inference" steps 3 and 4).

    The probability map is ``sigmoid(upsample_add(coarse_logits, attention, size))``, **then** enlarged
    bilinearly to ``out_size``; a pixel is set where it is > ``threshold``; maskness is the mean
    probability of the set pixels. No gradient.

    Of `MaskFactors` with ``size`` and ``out_size`` (h, w), as in SOLOv2, the backends "cpu" and
    "reference" keep no logits; elsewhere the product is made first.

    Args:
        coarse_logits: [K, h, w], or its `MaskFactors`; a float dtype.
        attention: [K, S, S], same dtype; None is plain SOLO.
        size: (2h, 2w), the level's mask-logit size.
        out_size: (H, W) that all levels' masks are compared at: the input's size / 4 in SOLO.
        threshold: of the probability, in [0, 1).
        backend: None for the fastest that can run.

    Returns:
        BitMasks of K masks; its maskness is float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run, or a gradient is asked of the maskness.

    Example:
        >>> bits = mask_bits(torch.tensor([[[9.0, -9.0]]]), None, size=(1, 2), out_size=(1, 4))
        >>> bits.to_bool(), bits.areas
        (tensor([[[ True,  True, False, False]]]), tensor([2]))
    """
    op = "mask_bits"
    check_coarse(op, coarse_logits, attention)
    check_threshold(op, threshold)
    size, out_size = check_size(op, "size", size), check_size(op, "out_size", out_size)
    if isinstance(coarse_logits, MaskFactors):
        kernels, features, images = coarse_logits.kernels, coarse_logits.features, coarse_logits.images
        fused = pick_form(op, kernels, backend, "factors") if size == out_size == coarse_logits.size else None
        if fused is not None:
            words, areas, maskness = fused(kernels, features, images, attention, float(threshold))
            return BitMasks(words, areas, maskness, out_size)
        coarse_logits = coarse_logits.logits()
    run = pick(op, coarse_logits, backend)
    words, areas, maskness = run(coarse_logits, attention, size, out_size, float(threshold))
    return BitMasks(words, areas, maskness, out_size)


def mask_bits_levels(
    levels: Sequence[Level],
    out_size: tuple[int, int],
    threshold: float = 0.5,
    *,
    backend: str | None = None,
) -> BitMasks:
    """`mask_bits` of several levels' cells at once, which are all compared at ``out_size``.

    The backend "cuda" has one launch for all levels (two, where some have ``size == out_size``, and others
    have not); elsewhere, and of `MaskFactors` and more than 8 levels, there is one call for each.

    Args:
        levels: at least one (coarse_logits, attention, size), each as in `mask_bits` and all of one dtype
            and device; a level may have no cells.
        out_size: (H, W) of all masks.
        threshold: of the probability, in [0, 1).
        backend: None for the fastest that can run.

    Returns:
        BitMasks of all levels' cells, those of the first level first.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run, or a gradient is asked of the maskness.

    Example:
        >>> coarse = torch.tensor([[[9.0, -9.0]]])
        >>> mask_bits_levels([(coarse, None, (1, 2)), (-coarse, None, (1, 4))], (1, 4)).to_bool()
        tensor([[[ True,  True, False, False]],
        <BLANKLINE>
                [[False, False,  True,  True]]])
    """
    op = "mask_bits"
    first, _ = check_levels(op, levels)[0]
    check_threshold(op, threshold)
    out_size = check_size(op, "out_size", out_size)
    sizes = [check_size(op, "size", size) for _, _, size in levels]
    fused = pick_form(op, first, backend, "levels") if can_be_joined(levels) else None
    if fused is None:
        parts = [mask_bits(*level, out_size, threshold, backend=backend) for level in levels]
        return BitMasks(
            torch.cat([part.words for part in parts]),
            torch.cat([part.areas for part in parts]),
            torch.cat([part.maskness for part in parts]),
            out_size,
        )
    coarse, attention = [level[0] for level in levels], attention_of(levels)
    flat = [edge for size in sizes for edge in size]
    words, areas, maskness = fused(coarse, attention, flat, out_size, float(threshold))
    return BitMasks(words, areas, maskness, out_size)


def _fake(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: tuple[int, int],
    out_size: tuple[int, int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    count, words = coarse_logits.shape[0], (out_size[0] * out_size[1] + 63) // 64
    return (
        coarse_logits.new_empty(count, words, dtype=torch.int64),
        coarse_logits.new_empty(count, dtype=torch.int64),
        coarse_logits.new_empty(count, dtype=accumulator(coarse_logits.dtype)),
    )


def _fake_factors(
    kernels: Tensor, features: Tensor, images: Tensor, attention: Tensor | None, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    size = (features.shape[2], features.shape[3])
    return _fake(kernels, attention, size, size, threshold)


declare(
    "mask_bits",
    "(Tensor coarse_logits, Tensor? attention, SymInt[2] size, SymInt[2] out_size, float threshold)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.mask_bits,
    fake=_fake,
)
declare(
    "mask_bits_factors",
    "(Tensor kernels, Tensor features, Tensor images, Tensor? attention, float threshold)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.mask_bits_factors,
    fake=_fake_factors,
    in_triton=False,
)


def _fake_levels(
    coarse_logits: list[Tensor],
    attention: list[Tensor],
    sizes: list[int],
    out_size: tuple[int, int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    first, count = coarse_logits[0], sum(level.shape[0] for level in coarse_logits)
    words = (out_size[0] * out_size[1] + 63) // 64
    return (
        first.new_empty(count, words, dtype=torch.int64),
        first.new_empty(count, dtype=torch.int64),
        first.new_empty(count, dtype=accumulator(first.dtype)),
    )


declare(
    "mask_bits_levels",
    "(Tensor[] coarse_logits, Tensor[] attention, SymInt[] sizes, SymInt[2] out_size, float threshold)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.mask_bits_levels,
    fake=_fake_levels,
    in_triton=False,
)


def _taken(masks: Tensor, index: Tensor | None) -> int:
    return len(masks if index is None else index)


declare(
    "mask_bits_pack",
    "(Tensor masks, Tensor? index) -> (Tensor, Tensor)",
    reference=reference.mask_bits_pack,
    fake=lambda masks, index: (
        masks.new_empty(_taken(masks, index), -(-masks.shape[1] // 64), dtype=torch.int64),
        masks.new_empty(_taken(masks, index), dtype=torch.int64),
    ),
    in_triton=False,
)
declare(
    "mask_bits_unpack",
    "(Tensor words, Tensor? index, SymInt pixels) -> Tensor",
    reference=reference.mask_bits_unpack,
    fake=lambda words, index, pixels: words.new_empty(_taken(words, index), pixels, dtype=torch.bool),
    in_triton=False,
)
