"""Intersection over union of masks, every pair: from bits, exact."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import check_like, fail
from ..reference import mask_iou as reference
from ._library import declare, pick
from .bit_masks import BitMasks, mask_rows


def mask_iou(
    masks: Tensor | BitMasks, others: Tensor | BitMasks | None = None, *, backend: str | None = None
) -> Tensor:
    """IoU of each mask with each other one (docs/method.md, "Matrix NMS" step 1, but of any labels).

    Intersections and unions are counted exactly, and their quotient is rounded once. Two empty masks have
    an IoU of 0, as each has with any other. No gradient.

    Args:
        masks: bool or uint8 [n, H, W] (what is not zero is the object), or BitMasks.
        others: m masks of the same H and W, in either form; None compares ``masks`` with themselves, which
            is half the work.
        backend: None for the fastest that can run.

    Returns:
        float32 [n, m].

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the named backend cannot run.
    """
    op = "mask_iou"
    rows, size = mask_rows(op, "masks", masks)
    other_rows = None
    if others is not None:
        other_rows, other_size = mask_rows(op, "others", others)
        if other_size != size:
            fail(op, "others", f"of masks' size {size}", f"{other_size}")
        check_like(op, "others", other_rows, "masks", rows, dtype=False)
    return pick(op, rows, backend, dtype=torch.float32)(rows, other_rows)


def _fake(masks: Tensor, others: Tensor | None) -> Tensor:
    columns = masks if others is None else others
    return masks.new_empty(masks.shape[0], columns.shape[0], dtype=torch.float32)


declare("mask_iou", "(Tensor masks, Tensor? others) -> Tensor", reference=reference.mask_iou, fake=_fake)
