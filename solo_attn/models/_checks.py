"""Checks of a model's inputs, with clearer and earlier errors than those of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_images(images: Sequence[Tensor], like: Tensor | None = None) -> None:
    """Images [3, H, W] of a float dtype, at least one; dense, of the dtype and on the device of ``like``."""
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
        if image.layout != torch.strided:
            raise TypeError(f"SOLO: expected images[{i}] to be a dense tensor, got {image.layout}")
        if (
            like is not None
            and image.dtype != like.dtype
            and not torch.is_autocast_enabled(image.device.type)
        ):
            raise TypeError(
                f"SOLO: expected images[{i}] of the model's dtype {like.dtype}, got {image.dtype}"
            )
        if like is not None and image.device != like.device:
            raise ValueError(
                f"SOLO: expected images[{i}] on the model's device {like.device}, got {image.device}"
            )


def check_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], num_classes: int
) -> None:
    """Boxes, labels and masks for each image, of the shapes and ranges that `SOLO` documents."""
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
            if target[key].layout != torch.strided:
                layout = target[key].layout
                raise TypeError(f"SOLO: expected targets[{i}]['{key}'] to be a dense tensor, got {layout}")
            if target[key].device != image.device:
                raise ValueError(
                    f"SOLO: expected targets[{i}]['{key}'] on the image's device {image.device}, got "
                    f"{target[key].device}"
                )
        if not target["boxes"].is_floating_point():
            raise TypeError(
                f"SOLO: expected targets[{i}]['boxes'] of a float dtype, got {target['boxes'].dtype}"
            )
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
        if count and not bool(boxes.isfinite().all()):
            raise ValueError(f"SOLO: expected targets[{i}]['boxes'] to be finite")
        if count and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            worst = int((boxes[:, 2:] > boxes[:, :2]).all(1).int().argmin())
            raise ValueError(
                f"SOLO: expected targets[{i}]['boxes'] with x2 > x1 and y2 > y1, "
                f"got {boxes[worst].tolist()} at {worst}"
            )
