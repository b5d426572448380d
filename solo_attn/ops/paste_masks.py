"""Kept masks at image size, as bool or as COCO's run-length encoding (docs/method.md, "Inference" step 9)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .._utils.checks import fail
from ..reference import paste_masks as reference
from ._checks import check_coarse, check_size, check_threshold
from ._library import declare, pick
from .mask_factors import MaskFactors

Rle = dict[str, Any]


@overload
def paste_masks(
    coarse_logits: Tensor | MaskFactors,
    attention: Tensor | None,
    size: tuple[int, int],
    out_size: tuple[int, int],
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float = 0.5,
    *,
    rle: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def paste_masks(
    coarse_logits: Tensor | MaskFactors,
    attention: Tensor | None,
    size: tuple[int, int],
    out_size: tuple[int, int],
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float = 0.5,
    *,
    rle: Literal[True],
    backend: str | None = None,
) -> list[Rle]: ...
def paste_masks(
    coarse_logits: Tensor | MaskFactors,
    attention: Tensor | None,
    size: tuple[int, int],
    out_size: tuple[int, int],
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float = 0.5,
    *,
    rle: bool = False,
    backend: str | None = None,
) -> Tensor | list[Rle]:
    """The kept cells' masks at the size of the original image (docs/method.md, "Inference" step 9).

    The probability map of `mask_bits` at ``out_size`` is enlarged bilinearly to 4 x ``out_size`` (the
    padded input), cropped to ``image_size``, resized bilinearly to ``original_size`` and only then
    thresholded. No gradient.

    Args:
        coarse_logits: [K, h, w], or its `MaskFactors`, whose product is then made; a float dtype.
        attention: [K, S, S], same dtype; None is plain SOLO.
        size: (2h, 2w), the level's mask-logit size.
        out_size: (H, W) of the maps at stride 4: the padded input's size / 4.
        image_size: (height, width) of the image in the padded input, at most 4 x ``out_size``.
        original_size: (height, width) of the result.
        threshold: of the probability, in [0, 1).
        rle: give COCO's compressed run-length encoding instead of pixels (the reference needs pycocotools).
        backend: None for the fastest that can run.

    Returns:
        bool [K, *original_size], or, with ``rle``, K dicts {"size": [height, width], "counts": bytes} equal
        to what pycocotools' ``encode`` makes of these masks.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, or an ``image_size``
            larger than the padded input.
        RuntimeError: the named backend cannot run.

    Example:
        >>> coarse = torch.tensor([[[9.0, -9.0]]])
        >>> paste_masks(coarse, None, size=(1, 2), out_size=(1, 2), image_size=(4, 8), original_size=(1, 4))
        tensor([[[ True,  True, False, False]]])
    """
    op = "paste_masks"
    check_coarse(op, coarse_logits, attention)
    check_threshold(op, threshold)
    size, out_size = check_size(op, "size", size), check_size(op, "out_size", out_size)
    image_size = check_size(op, "image_size", image_size)
    original_size = check_size(op, "original_size", original_size)
    if image_size[0] > 4 * out_size[0] or image_size[1] > 4 * out_size[1]:
        fail(op, "image_size", f"within 4 x out_size = {(4 * out_size[0], 4 * out_size[1])}", f"{image_size}")
    if isinstance(coarse_logits, MaskFactors):
        coarse_logits = coarse_logits.logits()
    arguments = (coarse_logits, attention, size, out_size, image_size, original_size, float(threshold))
    if not rle:
        return pick(op, coarse_logits, backend)(*arguments)
    counts, offsets = pick(op, coarse_logits, backend, "_rle")(*arguments)
    data, ends = counts.numpy().tobytes(), offsets.tolist()
    return [{"size": list(original_size), "counts": data[start:end]} for start, end in pairwise(ends)]


def _fake(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: tuple[int, int],
    out_size: tuple[int, int],
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float,
) -> Tensor:
    return coarse_logits.new_empty(coarse_logits.shape[0], *original_size, dtype=torch.bool)


def _fake_rle(coarse_logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    return (
        torch.empty(total, dtype=torch.uint8),
        torch.empty(coarse_logits.shape[0] + 1, dtype=torch.int64),
    )


_ARGUMENTS = (
    "(Tensor coarse_logits, Tensor? attention, SymInt[2] size, SymInt[2] out_size, SymInt[2] image_size,"
    " SymInt[2] original_size, float threshold)"
)
declare("paste_masks", f"{_ARGUMENTS} -> Tensor", reference=reference.paste_masks, fake=_fake)
declare(
    "paste_masks_rle",
    f"{_ARGUMENTS} -> (Tensor counts, Tensor offsets)",
    reference=reference.paste_masks_rle,
    fake=_fake_rle,
)
