"""Mask logits as a product of two factors: of each cell its kernel, of each image its features."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import fail
from ._common import widen


def product(op: str, kernels: Tensor, features: Tensor, images: Tensor) -> Tensor:
    """Logits ``kernels[k] . features[images[k]]``: [K, E], [B, E, h, w] and int64 [K] to [K, h, w].

    In the dtype that sums are made in.
    """
    logits = widen(kernels).new_empty(len(kernels), features.shape[2] * features.shape[3])
    for image in _present(op, images, len(features)):
        mine = images == image
        logits[mine] = widen(kernels[mine]) @ widen(features[image]).flatten(1)
    return logits.unflatten(1, features.shape[2:])


def product_bwd(
    op: str, grad: Tensor, kernels: Tensor, features: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of both factors, in the dtype of ``grad``; an image without a cell has one of zeros."""
    rows = grad.flatten(1)
    to_kernels = rows.new_zeros(kernels.shape)
    to_features = rows.new_zeros(features.shape)
    for image in _present(op, images, len(features)):
        mine = images == image
        to_kernels[mine] = rows[mine] @ widen(features[image]).flatten(1).T
        to_features[image] = (widen(kernels[mine]).T @ rows[mine]).unflatten(1, features.shape[2:])
    return to_kernels, to_features


def _present(op: str, images: Tensor, batch: int) -> list[int]:
    """The images that have a cell; refuses numbers outside of the batch before anything is read there."""
    found: list[int] = torch.unique(images).tolist()
    outside = [image for image in found if not 0 <= image < batch]
    if outside:
        fail(op, "images", f"in 0..{batch - 1}", str(outside[0]))
    return found
