"""Checks of what a model is made of and given: the parts it is made of would fail later and less clearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from .._utils.checks import is_finite, is_integer


def check_settings(
    fpn_channels: int,
    min_size: int | Sequence[int],
    max_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> None:
    """Settings of `build_solo` that torchvision's parts would only trip over later."""
    sizes = min_size if isinstance(min_size, Sequence) else [min_size]
    pixels = len(sizes) > 0 and all(is_integer(size, 1) for size in sizes)
    for name, got, expected, fine in (
        ("fpn_channels", fpn_channels, "an integer >= 1", is_integer(fpn_channels, 1)),
        ("min_size", min_size, "an integer >= 1 or several", pixels),
        # Not looked at where min_size is refused already.
        ("max_size", max_size, "an integer >= min_size", pixels and is_integer(max_size, max(sizes))),
        ("image_mean", image_mean, "three finite numbers", _are_three(image_mean)),
        (
            "image_std",
            image_std,
            "three finite numbers > 0",
            _are_three(image_std) and all(value > 0 for value in image_std),
        ),
    ):
        if not fine:
            raise ValueError(f"build_solo: expected {name} to be {expected}, got {got!r}")


def _are_three(values: object) -> bool:
    return isinstance(values, Sequence) and len(values) == 3 and all(map(is_finite, values))


def are_ranges(value: object, count: int) -> bool:
    """Whether it is so many pairs of numbers, none of them NaN, the first not above the second."""
    return (
        isinstance(value, Sequence)
        and len(value) == count
        and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in value)
        and all(isinstance(end, Real) for pair in value for end in pair)
        and all(low <= high for low, high in value)
    )


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
