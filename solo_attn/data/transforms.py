"""Augmentation, by torchvision's transforms v2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

_SMALLEST, _LARGEST = 1e-3, 1e2  # of scale_jitter: beyond, nothing is left of an image or no memory


class RandomScale(v2.Transform):
    """Resize by a random factor, keeping the ratio.

    Args:
        low: smallest factor.
        high: largest factor.
    """

    low: float
    high: float

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
    """Make boxes those of the masks again, and drop objects of which nothing is left.

    SOLO chooses an object's level by its box and its cell by its mask: the two must speak of the same part.
    """

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(image, target) with fitted boxes; x2 is the last column + 1."""
        masks = target["masks"].as_subclass(Tensor)
        rows, columns = masks.amax(2) > 0, masks.amax(1) > 0
        there = rows.any(1)
        (top, bottom), (left, right) = _span(rows[there]), _span(columns[there])
        if not there.all():  # a copy costs more than all the rest
            masks = masks[there]
        boxes = torch.stack([left, top, right, bottom], dim=1).float()
        return image, {
            **target,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=masks.shape[1:]),
            "labels": target["labels"][there],
            "masks": tv_tensors.Mask(masks),
        }


def _span(there: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of what is true in each row of [N, L]."""
    # Not torchvision's masks_to_boxes: its loop took 0.23 s for 200 masks of 520 x 696, all of this 0.04.
    there = there.byte()  # argmax gives the first of equals
    return there.argmax(1), there.shape[1] - there.flip(1).argmax(1)


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
        crop_size: (height, width) in pixels of a random crop, or its side; a smaller image comes to lie
            anywhere in it, the rest being the mean colour. None for no crop.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        colour: strength of brightness, contrast and saturation jitter; 0 for none.

    Returns:
        (image, target) -> (float32 image in 0..1, target); boxes are those of the masks, and objects that
        have no pixel left are gone.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value in (("flip", flip), ("vertical_flip", vertical_flip)):
        if not 0 <= value <= 1:
            raise ValueError(f"train_transforms: expected {name} in [0, 1], got {value}")
    if not 0 <= colour < math.inf:
        raise ValueError(f"train_transforms: expected colour >= 0 and finite, got {colour}")
    steps: list[nn.Module] = []
    if shortest_size is not None:
        if len(shortest_size) == 0 or min(shortest_size) < 1:
            raise ValueError(f"train_transforms: expected shortest_size in pixels, got {shortest_size}")
        steps.append(v2.RandomShortestSize(list(shortest_size)))
    if scale_jitter is not None:
        if len(scale_jitter) != 2 or not _SMALLEST <= scale_jitter[0] <= scale_jitter[1] <= _LARGEST:
            raise ValueError(
                f"train_transforms: expected scale_jitter (low, high), {_SMALLEST} <= low <= high <= "
                f"{_LARGEST}, got {scale_jitter}"
            )
        steps.append(RandomScale(*scale_jitter))
    if crop_size is not None:
        size = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"train_transforms: expected crop_size (height, width) >= 1, got {crop_size}")
        # 124 is close to the mean of ImageNet's colours, which the model's normalisation makes 0.
        fill = {tv_tensors.Image: 124, "others": 0}
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if vertical_flip:
        steps.append(v2.RandomVerticalFlip(vertical_flip))
    if colour:
        steps.append(v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour))
    # Cropping cuts and drops objects, and resizing can leave one without a pixel.
    return v2.Compose([*steps, FitBoxes(), *_to_float()])


def eval_transforms() -> v2.Compose:
    """(image, target) -> (float32 image in 0..1, target), otherwise as they are."""
    return v2.Compose(_to_float())


def _to_float() -> list[nn.Module]:
    kinds = {tv_tensors.Image: torch.float32, "others": None}
    return [v2.ToDtype(kinds, scale=True), v2.ToPureTensor()]
