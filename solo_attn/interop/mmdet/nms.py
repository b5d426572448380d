"""mmdetection's Matrix NMS, by its own signature."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._utils.checks import as_bool, check_float, check_like, check_tensor, fail
from ..._utils.decay import decay_of, descending
from ...models.targets import count_rows
from ...ops import BitMasks, matrix_nms

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
    after the decay. Beside the input are held sums of n x n and, on a CPU, bits; of soft masks copies of
    those of one label at a time, of integers and floats of 0 and 1 a copy as bool, and of the ``nms_pre``
    masks a copy where they are not contiguous bool on a CPU.

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
    chosen = descending(scores)[: nms_pre if nms_pre > 0 else None]
    labels_in, scores_in = labels[chosen], scores[chosen]
    area_in = None if mask_area is None else mask_area[chosen]
    if scores_in.dtype in (torch.float16, torch.bfloat16):
        scores_in = scores_in.float()
    if labels_in.dtype != torch.int64:
        labels_in = labels_in.unique(return_inverse=True)[1]
    given, places = masks, chosen
    if len(chosen) < len(masks) and not (_packs_at_once(masks) and masks.is_contiguous()):
        given, places = masks[chosen], torch.arange(len(chosen), device=masks.device)
    rows = _binary(given, places)
    decayed = _decayed(rows, given, places, labels_in, scores_in, kernel, sigma, area_in)
    kept = descending(decayed)
    if filter_thr > 0:
        kept = kept[decayed[kept] >= filter_thr]
    if max_num > 0:
        kept = kept[:max_num]
    index = chosen[kept]
    packed = rows if isinstance(rows, BitMasks) and _packs_at_once(masks) else None
    masks_out = masks[index] if packed is None else packed.to_bool(kept)
    return decayed[kept], labels[index], masks_out, index


def _packs_at_once(masks: Tensor) -> bool:
    return masks.dtype == torch.bool and masks.device.type == "cpu"


def _binary(masks: Tensor, places: Tensor) -> Tensor | BitMasks | None:
    """Those at ``places``, as bool or, on a CPU, as bits, which are read once; None where they are soft."""
    if masks.is_floating_point() and not all(bool(((x == 0) | (x == 1)).all()) for x in _parts(masks)):
        return None
    bits = as_bool(masks)
    return BitMasks.from_bool(bits, places) if masks.device.type == "cpu" else bits[places]


def _decayed(
    rows: Tensor | BitMasks | None,
    masks: Tensor,
    places: Tensor,
    labels: Tensor,
    scores: Tensor,
    kernel: str,
    sigma: float,
    area: Tensor | None,
) -> Tensor:
    """Decayed scores, the best first: of the binary ``rows``, else of ``masks`` at ``places``."""
    if rows is not None and (area is None or torch.equal(area.double(), _areas(rows).double())):
        return matrix_nms(rows, labels, scores, kernel, sigma)
    # The op says what is wrong with the other arguments, and knows nothing of soft masks and other areas.
    matrix_nms(masks[:0] != 0, labels[:0], scores[:0], kernel, sigma)
    soft = masks if rows is None else as_bool(masks)
    area = (_sums(soft)[places] if area is None else area).double()
    decay = scores.double()
    for label in labels.unique():
        group = (labels == label).nonzero()[:, 0]
        inter = _products(soft[places[group]])
        union = area[group][:, None] + area[group][None, :] - inter
        iou = torch.where(union == 0, 0.0, inter / union)
        decay[group] = decay_of(iou, kernel, sigma)
    return (scores * decay).to(scores.dtype)


def _areas(rows: Tensor | BitMasks) -> Tensor:
    return rows.areas if isinstance(rows, BitMasks) else count_rows(rows).sum(1)


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
