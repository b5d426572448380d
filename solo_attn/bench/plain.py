"""Each op in straightforward PyTorch, for comparisons of speed and rounding.

In the dtype of its inputs; arguments stand as those of the op.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def _resize(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def grid_attention(features: Tensor, scale: float = 1.0, cells: Tensor | None = None) -> Tensor:
    """[B, C, S, S] to [B, S*S, S, S], or with ``cells`` [K, 2] to [K, S, S]."""
    vectors = features.flatten(2)
    attention = torch.einsum("bcn,bcm->bnm", vectors, vectors).unflatten(2, features.shape[2:])
    attention = attention if scale == 1.0 else attention * scale
    return attention if cells is None else attention[cells[:, 0], cells[:, 1]]


def attention_residual(logits: Tensor, features: Tensor, scale: float = 1.0) -> Tensor:
    """[B, S*S, H, W] and [B, C, S, S] to [B, S*S, H, W]."""
    attention = grid_attention(features, scale)
    return logits + F.interpolate(attention, size=logits.shape[2:], mode="bilinear", align_corners=False)


def upsample_add(coarse: Tensor, attention: Tensor | None, size: Size) -> Tensor:
    """[K, h, w] and [K, S, S] or None to [K, *size]."""
    large = _resize(coarse, size)
    return large if attention is None else large + _resize(attention, size)


def product(kernels: Tensor, features: Tensor, images: Tensor) -> Tensor:
    """[K, E], [B, E, h, w] and [K] to mask logits [K, h, w]."""
    rows = [(kernels @ x.flatten(1)).unflatten(1, x.shape[1:]) for x in features]
    if len(rows) == 1:
        return rows[0]
    return torch.stack(rows)[images, torch.arange(len(kernels), device=images.device)]


def dice_loss(coarse: Tensor, attention: Tensor | None, targets: Tensor, eps: float = 1e-3) -> Tensor:
    """[K, h, w], [K, S, S] or None, and [K, H, W] to [K]."""
    size = (targets.shape[1], targets.shape[2])
    probability = upsample_add(coarse, attention, size).sigmoid().flatten(1)
    truth = targets.flatten(1).to(probability.dtype)
    overlap = (probability * truth).sum(1)
    return 1 - 2 * overlap / (probability.square().sum(1) + truth.square().sum(1) + 2 * eps)


def probability(coarse: Tensor, attention: Tensor | None, size: Size, out_size: Size) -> Tensor:
    """Probability maps at stride 4, [K, *out_size]."""
    return _resize(upsample_add(coarse, attention, size).sigmoid(), out_size)


def mask_bits(
    coarse: Tensor, attention: Tensor | None, size: Size, out_size: Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks [K, *out_size], areas [K] and maskness [K], as SOLO's head makes them: not packed."""
    maps = probability(coarse, attention, size, out_size)
    masks = maps > 0.5
    areas = masks.sum((1, 2))
    return masks, areas, (maps * masks).sum((1, 2)) / areas.clamp(min=1)


def mask_iou(masks: Tensor) -> Tensor:
    """[n, H, W] to [n, n]."""
    flat = masks.flatten(1).float()
    both = flat @ flat.T
    area = flat.sum(1)
    return both / (area[:, None] + area[None, :] - both).clamp(min=1)


def matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Matrix NMS as SOLO's public versions write it; scores [n] in input order."""
    order = scores.argsort(descending=True, stable=True)
    flat, label = masks[order].flatten(1).to(scores.dtype), labels[order]
    both = flat @ flat.T
    area = flat.sum(1)
    overlap = (both / (area[:, None] + area[None, :] - both).clamp(min=1)).triu(1)
    overlap = overlap * (label[:, None] == label[None, :])
    worst = overlap.amax(0)[:, None]
    if kernel == "gaussian":
        decay = (torch.exp(-sigma * overlap.square()) / torch.exp(-sigma * worst.square())).amin(0)
    else:
        decay = ((1 - overlap) / (1 - worst)).amin(0)
    return scores * decay[order.argsort()]


def paste_masks(
    coarse: Tensor, attention: Tensor, size: Size, out_size: Size, image: Size, original: Size
) -> Tensor:
    """Bool [K, *original]."""
    maps = _resize(probability(coarse, attention, size, out_size), (4 * out_size[0], 4 * out_size[1]))
    return _resize(maps[:, : image[0], : image[1]], original) > 0.5


def paste_masks_rle(
    coarse: Tensor, attention: Tensor, size: Size, out_size: Size, image: Size, original: Size
) -> list[Any]:
    """The same as K dicts of COCO's run-length encoding."""
    return encode(paste_masks(coarse, attention, size, out_size, image, original))


@torch.compiler.disable
def encode(masks: Tensor) -> list[Any]:
    """Bool [K, H, W] to K dicts of COCO's run-length encoding, by pycocotools."""
    import pycocotools.mask as coco_mask

    in_columns = np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy().view(np.uint8))
    return list(coco_mask.encode(in_columns))
