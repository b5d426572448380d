"""Augmentation, by torchvision's transforms v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

_SMALLEST = 1e-3  # of scale_jitter: below it nothing is left of an image


class RandomScale(v2.Transform):
    """Resize by a random factor, keeping the ratio.

    Args:
        low: smallest factor.
        high: largest factor.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size, drawn once for image, boxes and masks."""
        height, width = v2.functional.get_size(
            next(x for x in flat_inputs if isinstance(x, tv_tensors.Image))
        )
        factor = self.low + (self.high - self.low) * torch.rand(()).item()
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one of them."""
        return self._call_kernel(v2.functional.resize, inpt, params["size"])


class FitBoxes(nn.Module):
    """Make boxes those of the masks again after cropping, and drop objects that are cropped away.

    SOLO chooses an object's level by its box and its cell by its mask: the two must speak of the same part.
    """

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(image, target) with fitted boxes; x2 is the last column + 1."""
        masks = target["masks"]
        there = masks.ne(0).flatten(1).any(1)
        masks = masks[there]
        boxes = masks_to_boxes(masks) if len(masks) else torch.zeros(0, 4)
        boxes[:, 2:] += 1
        height, width = image.shape[-2:]
        return image, {
            **target,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": target["labels"][there],
            "masks": tv_tensors.Mask(masks),
        }


def train_transforms(
    *,
    shortest_size: Sequence[int] | None = None,
    scale_jitter: tuple[float, float] | None = None,
    crop_size: int | tuple[int, int] | None = None,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    colour: float = 0.0,
) -> v2.Compose:
    """Random variations of a training image, in the order of the arguments.

    Args:
        shortest_size: resize so that the shorter side has one of these lengths in pixels, or None.
        scale_jitter: (low, high) of a random factor on the image's size, or None.
        crop_size: (height, width) in pixels of a random crop, or its side; smaller images are padded with
            the mean colour at the right and below. None for no crop.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        colour: strength of brightness, contrast and saturation jitter; 0 for none.

    Returns:
        (image, target) -> (float32 image in 0..1, target); objects that are cropped away are gone.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value in (("flip", flip), ("vertical_flip", vertical_flip)):
        if not 0 <= value <= 1:
            raise ValueError(f"train_transforms: expected {name} in [0, 1], got {value}")
    if colour < 0:
        raise ValueError(f"train_transforms: expected colour >= 0, got {colour}")
    steps: list[nn.Module] = []
    if shortest_size is not None:
        if len(shortest_size) == 0 or min(shortest_size) < 1:
            raise ValueError(f"train_transforms: expected shortest_size in pixels, got {shortest_size}")
        steps.append(v2.RandomShortestSize(list(shortest_size)))
    if scale_jitter is not None:
        low, high = scale_jitter
        if not _SMALLEST <= low <= high:
            raise ValueError(f"train_transforms: expected scale_jitter 0 < low <= high, got {scale_jitter}")
        steps.append(RandomScale(low, high))
    if crop_size is not None:
        size = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"train_transforms: expected crop_size (height, width) >= 1, got {crop_size}")
        # 124 is close to the mean of ImageNet's colours, which the model's normalisation makes 0.
        fill = {tv_tensors.Image: 124, "others": 0}
        steps += [v2.RandomCrop(size, pad_if_needed=True, fill=fill), FitBoxes()]
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if vertical_flip:
        steps.append(v2.RandomVerticalFlip(vertical_flip))
    if colour:
        steps.append(v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour))
    # Resizing can leave an object without a pixel too.
    return v2.Compose([*steps, FitBoxes(), *_to_float()])


def eval_transforms() -> v2.Compose:
    """(image, target) -> (float32 image in 0..1, target), otherwise as they are."""
    return v2.Compose(_to_float())


def _to_float() -> list[nn.Module]:
    kinds = {tv_tensors.Image: torch.float32, "others": None}
    return [v2.ToDtype(kinds, scale=True), v2.ToPureTensor()]
