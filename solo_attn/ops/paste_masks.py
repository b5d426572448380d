"""Kept masks at image size, as bool or as COCO's run-length encoding (docs/method.md, "Inference" step 9)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .._utils.checks import check_like, check_tensor, fail
from ..reference import paste_masks as reference
from ._checks import (
    attention_of,
    can_be_joined,
    check_coarse,
    check_levels,
    check_size,
    check_threshold,
)
from ._library import declare, pick, pick_form
from .mask_factors import MaskFactors

Rle = dict[str, Any]
Size = tuple[int, int]
Level = tuple[Tensor | MaskFactors, Tensor | None, Size]


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
        to what pycocotools' ``encode`` makes of these masks. A bool result of 4 MiB or more of the backend
        "cpu" cannot be resized in place.

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
    size = check_size(op, "size", size)
    sizes = _checked(op, out_size, image_size, original_size)
    if isinstance(coarse_logits, MaskFactors):
        coarse_logits = coarse_logits.logits()
    run = pick(op, coarse_logits, backend, "_rle" if rle else "")
    found = run(coarse_logits, attention, size, *sizes, float(threshold))
    return _texts(found, original_size) if rle else found


@overload
def paste_masks_levels(
    levels: Sequence[Level],
    index: Tensor,
    out_size: Size,
    image_size: Size,
    original_size: Size,
    threshold: float = 0.5,
    *,
    rle: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def paste_masks_levels(
    levels: Sequence[Level],
    index: Tensor,
    out_size: Size,
    image_size: Size,
    original_size: Size,
    threshold: float = 0.5,
    *,
    rle: Literal[True],
    backend: str | None = None,
) -> list[Rle]: ...
def paste_masks_levels(
    levels: Sequence[Level],
    index: Tensor,
    out_size: Size,
    image_size: Size,
    original_size: Size,
    threshold: float = 0.5,
    *,
    rle: bool = False,
    backend: str | None = None,
) -> Tensor | list[Rle]:
    """`paste_masks` of some of several levels' cells, in any order.

    The backend "cuda" looks the cells up in the kernel: one launch for all levels' maps (two, where some have
    ``size == out_size``, and others have not), and no wait for ``index``. Elsewhere, and of `MaskFactors` and
    more than 8 levels, there is one call for each level.

    Args:
        levels: at least one (coarse_logits, attention, size), each as in `paste_masks` and all of one dtype
            and device; a level may have no cells.
        index: int64 [N]: of each mask of the result, its number among the cells of all levels, those of the
            first level first.
        out_size, image_size, original_size, threshold: as in `paste_masks`.
        rle: give COCO's compressed run-length encoding instead of pixels (the reference needs pycocotools).
        backend: None for the fastest that can run.

    Returns:
        bool [N, *original_size], or, with ``rle``, N dicts, as of `paste_masks`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, or a number in ``index``
            that no cell has (on a GPU a failed assertion there).
        RuntimeError: the named backend cannot run.

    Example:
        >>> coarse, index = torch.tensor([[[9.0, -9.0]]]), torch.tensor([1, 0])
        >>> levels = [(coarse, None, (1, 2)), (-coarse, None, (1, 2))]
        >>> paste_masks_levels(levels, index, out_size=(1, 2), image_size=(4, 8), original_size=(1, 4))
        tensor([[[False, False,  True,  True]],
        <BLANKLINE>
                [[ True,  True, False, False]]])
    """
    op = "paste_masks"
    first, name = check_levels(op, levels)[0]
    check_threshold(op, threshold)
    each = [check_size(op, "size", size) for _, _, size in levels]
    sizes = _checked(op, out_size, image_size, original_size)
    check_tensor(op, "index", index, "[N]")
    if index.dtype != torch.int64:
        fail(op, "index", "int64 of shape [N]", f"{index.dtype} {list(index.shape)}")
    check_like(op, "index", index, name, first, dtype=False)
    joined = can_be_joined(levels)
    fused = pick_form(op, first, backend, "levels", "_rle" if rle else "") if joined else None
    if fused is None:
        parts = reference.by_level(levels, index)
        if not rle:
            masks = torch.empty(len(index), *original_size, dtype=torch.bool, device=index.device)
            for mine, level in parts:
                masks[mine] = paste_masks(*level, *sizes, threshold, backend=backend)
            return masks
        runs: dict[int, Rle] = {}
        for mine, level in parts:
            encoded = paste_masks(*level, *sizes, threshold, rle=True, backend=backend)
            runs |= zip(mine.tolist(), encoded, strict=True)
        return [runs[n] for n in range(len(index))]
    coarse, flat = [level[0] for level in levels], [edge for size in each for edge in size]
    found = fused(coarse, attention_of(levels), flat, index, *sizes, float(threshold))
    return _texts(found, original_size) if rle else found


def _checked(op: str, out_size: Size, image_size: Size, original_size: Size) -> tuple[Size, Size, Size]:
    out_size = check_size(op, "out_size", out_size)
    image_size = check_size(op, "image_size", image_size)
    original_size = check_size(op, "original_size", original_size)
    if image_size[0] > 4 * out_size[0] or image_size[1] > 4 * out_size[1]:
        fail(op, "image_size", f"within 4 x out_size = {(4 * out_size[0], 4 * out_size[1])}", f"{image_size}")
    return out_size, image_size, original_size


def _texts(found: tuple[Tensor, Tensor], size: Size) -> list[Rle]:
    counts, offsets = found
    data, ends = counts.numpy().tobytes(), offsets.tolist()
    return [{"size": list(size), "counts": data[start:end]} for start, end in pairwise(ends)]


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


def _fake_levels(
    coarse_logits: list[Tensor],
    attention: list[Tensor],
    sizes: list[int],
    index: Tensor,
    out_size: Size,
    image_size: Size,
    original_size: Size,
    threshold: float,
) -> Tensor:
    return index.new_empty(index.shape[0], *original_size, dtype=torch.bool)


def _fake_levels_rle(
    coarse_logits: list[Tensor], attention: list[Tensor], sizes: list[int], index: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return _fake_rle(index)


_LEVELS = (
    "(Tensor[] coarse_logits, Tensor[] attention, SymInt[] sizes, Tensor index, SymInt[2] out_size,"
    " SymInt[2] image_size, SymInt[2] original_size, float threshold)"
)
declare(
    "paste_masks_levels",
    f"{_LEVELS} -> Tensor",
    reference=reference.paste_masks_levels,
    fake=_fake_levels,
    in_triton=False,
)
declare(
    "paste_masks_levels_rle",
    f"{_LEVELS} -> (Tensor counts, Tensor offsets)",
    reference=reference.paste_masks_levels_rle,
    fake=_fake_levels_rle,
    in_triton=False,
)
