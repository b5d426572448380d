"""mmdetection's Matrix NMS, by its own signature."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._utils.checks import check_float, check_like, check_tensor, fail
from ..._utils.decay import decay_of, descending
from ...models.targets import count_rows
from ...ops import matrix_nms
from ...ops.matrix_nms import take_masks

_NAME = "mask_matrix_nms"
_CHUNK = 1 << 15  # pixels that are held as floats at a time


def mask_matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    filter_thr: float = -1,
    nms_pre: int = -1,
    max_num: int = -1,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    mask_area: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In the place of ``mmdet.models.layers.mask_matrix_nms`` (mmdetection 3.3.0), without its faults.

    Empty and identical masks leave every score finite; equal scores keep the order of the input, before and
    after the decay; what is held beside the input are sums of n x n, no float copy of the masks.

    Args:
        masks: [n, h, w]; bool, or integers of which what is not zero is set. Floats of 0 and 1 are the same
            as bool; other floats overlap by their products, as in mmdetection.
        labels: [n], any dtype.
        scores: [n], a float dtype.
        filter_thr: decayed score that stays, inclusive; 0 or less keeps all.
        nms_pre: the best so many take part; 0 or less: all.
        max_num: the best so many are returned; 0 or less: all.
        kernel: "gaussian" or "linear".
        sigma: of the gaussian, > 0 and finite.
        mask_area: [n], the sums of the masks; where they are others, they are what the union is made of.

    Returns:
        Of the masks kept, best first: decayed scores (float32 for half precision), labels, masks, and their
        int64 indices in the input. Nothing kept gives four empty tensors.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, or an unknown kernel.
    """
    _check(masks, labels, scores, mask_area)
    order = descending(scores)
    chosen = order[:nms_pre] if nms_pre > 0 else order
    if len(chosen) < len(order):
        # The others copy no mask: the op takes them in any order.
        masks_in, labels_in, scores_in = take_masks(masks, chosen), labels[chosen], scores[chosen]
        area_in = None if mask_area is None else mask_area[chosen]
        ranks = torch.arange(len(chosen), device=order.device)
    else:
        masks_in, labels_in, scores_in, area_in, ranks = masks, labels, scores, mask_area, order
    if scores_in.dtype in (torch.float16, torch.bfloat16):
        scores_in = scores_in.float()
    if labels_in.dtype != torch.int64:
        labels_in = labels_in.unique(return_inverse=True)[1]
    decayed = _decayed(masks_in, labels_in, scores_in, kernel, sigma, area_in)[ranks]
    kept = descending(decayed)
    if filter_thr > 0:
        kept = kept[decayed[kept] >= filter_thr]
    if max_num > 0:
        kept = kept[:max_num]
    index = chosen[kept]
    return decayed[kept], labels[index], take_masks(masks, index), index


def _decayed(
    masks: Tensor, labels: Tensor, scores: Tensor, kernel: str, sigma: float, area: Tensor | None
) -> Tensor:
    """Decayed scores, in the order of ``masks``."""
    if masks.is_floating_point():
        binary = bool(((masks == 0) | (masks == 1)).all())
        bits = masks != 0
    else:
        binary, bits = True, masks if masks.dtype == torch.bool else masks != 0
    if binary and (area is None or torch.equal(area.double(), count_rows(bits).sum(1).double())):
        return matrix_nms(bits, labels, scores, kernel, sigma)
    # The op says what is wrong with the other arguments, and knows nothing of soft masks and other areas.
    matrix_nms(bits[:0], labels[:0], scores[:0], kernel, sigma)
    soft = masks if masks.is_floating_point() else bits
    area = (_sums(soft) if area is None else area).double()
    order, decay = descending(scores), scores.double()
    for label in labels.unique():
        group = order[labels[order] == label]
        inter = _products(soft[group])
        union = area[group][:, None] + area[group][None, :] - inter
        iou = torch.where(union == 0, 0.0, inter / union)
        decay[group] = decay_of(iou, kernel, sigma)
    return (scores * decay).to(scores.dtype)


def _parts(masks: Tensor) -> tuple[Tensor, ...]:
    return masks.flatten(1).split(_CHUNK, dim=1)


def _sums(masks: Tensor) -> Tensor:
    return sum((part.double().sum(1) for part in _parts(masks)), start=masks.new_zeros(len(masks)).double())


def _products(masks: Tensor) -> Tensor:
    """[n, n] sums of products."""
    total = torch.zeros(len(masks), len(masks), dtype=torch.float64, device=masks.device)
    for part in _parts(masks):
        total += part.double() @ part.double().T
    return total


def _check(masks: Tensor, labels: Tensor, scores: Tensor, mask_area: Tensor | None) -> None:
    check_tensor(_NAME, "masks", masks, "[n, h, w]")
    check_tensor(_NAME, "scores", scores, "[n]")
    check_float(_NAME, "scores", scores)
    check_tensor(_NAME, "labels", labels, "[n]")
    named = [("labels", labels), ("scores", scores)]
    if mask_area is not None:
        check_tensor(_NAME, "mask_area", mask_area, "[n]")
        named.append(("mask_area", mask_area))
    for name, x in named:
        if len(x) != len(masks):
            fail(_NAME, name, f"of length n = {len(masks)} as masks has", str(len(x)))
        check_like(_NAME, name, x, "masks", masks, dtype=False)
