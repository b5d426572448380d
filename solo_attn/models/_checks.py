"""Checks of what a model is made of and given: the parts it is made of would fail later and less clearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_images(images: Sequence[Tensor]) -> None:
    """Images [3, H, W] of a float dtype, at least one."""
    if not isinstance(images, Sequence) or len(images) == 0:
        what = "an empty list" if isinstance(images, Sequence) else type(images).__name__
        if isinstance(images, Tensor):
            what = f"a tensor of shape {list(images.shape)}"
        raise ValueError(f"SOLO: expected images to be a non-empty list of tensors [3, H, W], got {what}")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
            got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"SOLO: expected images[{i}] of shape [3, H, W], got {got}")
        if image.numel() == 0:
            raise ValueError(f"SOLO: expected images[{i}] to have pixels, got {list(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"SOLO: expected images[{i}] of a float dtype in 0..1, got {image.dtype}")


def check_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], num_classes: int
) -> None:
    """Boxes, labels and masks for each image, of the shapes and ranges that `SOLO` says."""
    if len(targets) != len(images):
        raise ValueError(f"SOLO: expected {len(images)} targets, one for each image, got {len(targets)}")
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        missing = [key for key in ("boxes", "labels", "masks") if key not in target]
        if missing:
            raise ValueError(f"SOLO: expected targets[{i}] to have {', '.join(missing)}, got {list(target)}")
        for key in ("boxes", "labels", "masks"):
            if not isinstance(target[key], Tensor):
                kind = type(target[key]).__name__
                raise TypeError(f"SOLO: expected targets[{i}]['{key}'] to be a tensor, got {kind}")
        if target["labels"].dtype != torch.int64:
            raise TypeError(
                f"SOLO: expected targets[{i}]['labels'] of dtype int64, got {target['labels'].dtype}"
            )
        count = len(target["labels"])
        for key, shape in (
            ("boxes", [count, 4]),
            ("labels", [count]),
            ("masks", [count, *image.shape[1:]]),
        ):
            if list(target[key].shape) != shape:
                raise ValueError(
                    f"SOLO: expected targets[{i}]['{key}'] of shape {shape}, got {list(target[key].shape)}"
                )
        labels = target["labels"]
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"SOLO: expected targets[{i}]['labels'] in 0..{num_classes - 1}, "
                f"got {int(labels.min())}..{int(labels.max())}"
            )
        boxes = target["boxes"]
        if count and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            worst = int((boxes[:, 2:] > boxes[:, :2]).all(1).int().argmin())
            raise ValueError(
                f"SOLO: expected targets[{i}]['boxes'] with x2 > x1 and y2 > y1, "
                f"got {boxes[worst].tolist()} at {worst}"
            )
