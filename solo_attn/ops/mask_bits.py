"""Masks as bits, areas and maskness in one pass over the logits (docs/method.md, "Identities" step 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import accumulator
from ..reference import mask_bits as reference
from ._checks import check_coarse, check_size, check_threshold
from ._library import declare, pick, pick_factors
from .bit_masks import BitMasks
from .mask_factors import MaskFactors


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
        fused = pick_factors(op, kernels, backend) if size == out_size == coarse_logits.size else None
        if fused is not None:
            words, areas, maskness = fused(kernels, features, images, attention, float(threshold))
            return BitMasks(words, areas, maskness, out_size)
        coarse_logits = coarse_logits.logits()
    run = pick(op, coarse_logits, backend)
    words, areas, maskness = run(coarse_logits, attention, size, out_size, float(threshold))
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
