"""From category scores to final masks, in the order of docs/method.md, "Inference"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._utils.bits import occupied, span
from .._utils.limits import refuse_pixels
from ..ops import mask_bits_levels, matrix_nms, paste_masks_levels
from .candidates import Candidates, Drawn, find_candidates, points_nms
from .fixed_inference import CANDIDATES, find_detections
from .heads import STRIDES, Head, HeadResult
from .settings import InferenceSettings

MOST_PIXELS = 2**28  # of masks at stride 4 that may be drawn in vain: 1 GiB of float32


def predict(
    head: Head,
    result: HeadResult,
    image_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    options: InferenceSettings,
    *,
    rle: bool = False,
) -> list[dict[str, Any]]:
    """Instances of each image of a batch.

    Args:
        head: makes the chosen cells' masks.
        result: what it made of the pyramid.
        image_sizes: (height, width) of each image inside the padded input.
        original_sizes: (height, width) that the masks are wanted at.
        options: thresholds and limits.
        rle: masks as COCO's run lengths, straight from the coarse logits; needs pycocotools.

    Returns:
        For each image ``boxes`` float32 [N, 4], ``labels`` int64 [N], ``scores`` float32 [N] descending,
        ``masks`` bool [N, height, width], or N dicts {"size": [height, width], "counts": bytes}.
    """
    kept, drawn = _detect(head, result, options)
    return instances(kept, drawn, image_sizes, original_sizes, options, rle=rle)


def instances(
    kept: Candidates,
    drawn: Drawn,
    image_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    options: InferenceSettings,
    *,
    rle: bool = False,
) -> list[dict[str, Any]]:
    """Step 9: `predict`'s results from the candidates that are kept, for each image the best first."""
    images = torch.arange(len(image_sizes), device=kept.image.device)
    counts = (kept.image[:, None] == images).sum(0).tolist()  # waits, once for all images
    rows = kept.image.argsort(stable=True).split(counts)
    sizes = zip(image_sizes, original_sizes, strict=True)
    return [
        _paste(kept.select(mine), drawn, *both, options, rle) for mine, both in zip(rows, sizes, strict=True)
    ]


def _detect(head: Head, result: HeadResult, options: InferenceSettings) -> tuple[Candidates, Drawn]:
    """Steps 1 to 8."""
    if waits_long(result.features[1]):
        found = find_detections(head, result, options)
        count, left_out = torch.stack([found.count, found.left_out]).tolist()  # the one time that it waits
        if not any(left_out):
            return found.kept(count), found.drawn
        del found  # its masks need the memory that all candidates' masks may need
    drawn = draw_candidates(head, result, options)
    return suppress(drawn, head.num_classes, options), drawn


def waits_long(features: Tensor) -> bool:
    """Whether asking how many candidates there are should take longer than drawing masks that are not needed.

    This is expected, and not measured, where the host gives the device its work in advance, unless these
    masks are large. A CPU computes each step when it is called.

    Args:
        features: of the level of stride 8, [B, C, h, w]; the masks of all levels are compared at 2h x 2w.
    """
    pixels = 4 * len(STRIDES) * CANDIDATES * features.shape[0] * features.shape[2] * features.shape[3]
    return features.is_cuda and pixels <= MOST_PIXELS


def draw_candidates(head: Head, result: HeadResult, options: InferenceSettings) -> Drawn:
    """Steps 1 to 4: the cells with a score and their masks, without those that are too small."""
    out_size = result.compared_at
    found: list[Candidates] = []
    chosen: dict[int, Tensor] = {}
    for k, logits in enumerate(result.category_logits):
        candidates, cells = find_candidates(points_nms(logits.float().sigmoid()), options.score_threshold)
        if len(cells):  # no mask tower for a level without candidates
            candidates.mask = candidates.mask + sum(map(len, chosen.values()))
            found.append(candidates)
            chosen[k] = cells
    if not chosen:
        nothing = result.features[0].new_empty(0, dtype=torch.int64)
        return Drawn(Candidates(nothing, nothing, nothing.float(), nothing), [], [], None, out_size)
    result = head.prepare(result, {k: cells[:, 0].unique() for k, cells in chosen.items()})
    masks = head.masks_of(result, chosen, out_size)
    bits = mask_bits_levels(masks, out_size, options.mask_threshold)
    kept = []
    for k, candidates in zip(chosen, found, strict=True):
        candidates.score = candidates.score * bits.maskness[candidates.mask].float()
        large = bits.areas[candidates.mask] > STRIDES[k]
        kept.append(candidates.select(large.nonzero().squeeze(1)))
    return Drawn(_concatenate(kept), [*chosen.items()], masks, bits, out_size)


def _concatenate(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        torch.cat([part.image for part in parts]),
        torch.cat([part.label for part in parts]),
        torch.cat([part.score for part in parts]),
        torch.cat([part.mask for part in parts]),
    )


def suppress(drawn: Drawn, num_classes: int, options: InferenceSettings) -> Candidates:
    """Steps 5 to 8 for all images at once: labels are made to differ between images."""
    candidates = drawn.candidates.best(options.nms_pre)
    if drawn.bits is None or len(candidates.mask) == 0:
        return candidates
    candidates.score = matrix_nms(
        drawn.bits.select(candidates.mask),
        candidates.image * num_classes + candidates.label,
        candidates.score,
        options.nms_kernel,
        options.nms_sigma,
    )
    keep = (candidates.score >= options.final_score_threshold).nonzero().squeeze(1)
    return candidates.select(keep).best(options.max_detections)


def _paste(
    kept: Candidates,
    drawn: Drawn,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    options: InferenceSettings,
    rle: bool,
) -> dict[str, Any]:
    """Step 9 for one image."""
    count = 0 if rle else len(kept.mask)
    refuse_pixels("predict", count, original_size)
    sizes = (drawn.out_size, image_size, original_size)
    found = {"labels": kept.label, "scores": kept.score}
    if rle:
        runs = (
            paste_masks_levels(drawn.masks, kept.mask, *sizes, options.mask_threshold, rle=True)
            if drawn.masks
            else []
        )
        return {"boxes": boxes_of_runs(runs).to(kept.label.device), **found, "masks": runs}
    masks = (
        paste_masks_levels(drawn.masks, kept.mask, *sizes, options.mask_threshold)
        if drawn.masks
        else torch.empty(0, *original_size, dtype=torch.bool, device=kept.mask.device)
    )
    return {"boxes": boxes_of(masks), **found, "masks": masks}


def boxes_of_runs(masks: list[Any]) -> Tensor:
    """`boxes_of` of COCO's run lengths; needs pycocotools."""
    from pycocotools.mask import toBbox

    boxes = torch.from_numpy(toBbox(masks)).float().reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes of bool masks [N, H, W]: float32 [N, 4], xyxy with x2 = last column + 1; zeros where empty."""
    rows, columns = occupied(masks)
    (top, bottom), (left, right) = span(rows), span(columns)
    return torch.stack([left, top, right, bottom], dim=1).float() * rows.any(1)[:, None]
