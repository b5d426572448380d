"""Augmentation, by torchvision's transforms v2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from .._utils.bits import occupied, span

_GREY = 124  # close to the mean of ImageNet's colours, which the model's normalisation maps to 0
_SMALLEST, _LARGEST = 1e-3, 1e2  # of scale_jitter: beyond them, no pixel is left of an image, or no memory


class RandomScale(v2.Transform):
    """Resize by a random factor, keeping the ratio; halving is as likely as doubling.

    Args:
        low: smallest factor.
        high: largest factor.
        canvas: (height, width) in pixels that the image is fitted to before, or None. Not v2.ScaleJitter,
            which takes the height for the width.
    """

    low: float
    high: float
    canvas: tuple[int, int] | None

    def __init__(self, low: float, high: float, canvas: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.low, self.high, self.canvas = low, high, canvas

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size, drawn once for image, boxes and masks."""
        height, width = v2.functional.get_size(
            next(x for x in flat_inputs if isinstance(x, tv_tensors.Image))
        )
        factor = self.low * (self.high / self.low) ** torch.rand(()).item()
        if self.canvas is not None:
            factor *= min(self.canvas[0] / height, self.canvas[1] / width)
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one of them."""
        return self._call_kernel(v2.functional.resize, inpt, params["size"])


class RandomScaledCrop(nn.Module):
    """`RandomScale`, and a random crop of its result; a smaller result is placed at random on the crop.

    The crop is cut out of the image first and then resized, with only those masks that have a pixel in it:
    for an image of 375 nuclei, resizing all of them and cropping afterwards took ten times as long.

    Args:
        low: smallest factor.
        high: largest factor.
        size: (height, width) in pixels of the result.
        fitted: the image is fitted to ``size`` before.
    """

    scale: RandomScale
    size: tuple[int, int]

    def __init__(self, low: float, high: float, size: tuple[int, int], fitted: bool = False) -> None:
        super().__init__()
        self.scale = RandomScale(low, high, size if fitted else None)
        self.size = size

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(image, target) of that size; the boxes are not those of the masks until `FitBoxes`."""
        scaled = self.scale.make_params([image])["size"]
        # Of each side: where the window begins in the image, its length there and in the result, its place.
        (top, height, rows, above), (left, width, columns, before) = (
            _window(length, new, wanted)
            for length, new, wanted in zip(image.shape[1:], scaled, self.size, strict=True)
        )
        masks = target["masks"][:, top : top + height, left : left + width].as_subclass(Tensor)
        there = torch.tensor([bool(mask.any()) for mask in masks.numpy()], dtype=torch.bool)
        masks = masks if there.all() else masks[there]
        picture = image[:, top : top + height, left : left + width].as_subclass(Tensor)
        if (rows, columns) != (height, width):
            picture = v2.functional.resize(picture, [rows, columns])
            nearest = v2.InterpolationMode.NEAREST
            masks = v2.functional.resize(masks, [rows, columns], nearest)
        if (rows, columns) != self.size:
            padding = [before, above, self.size[1] - before - columns, self.size[0] - above - rows]
            picture = v2.functional.pad(picture, padding, fill=_GREY)
            masks = v2.functional.pad(masks, padding, fill=0)
        boxes = tv_tensors.BoundingBoxes(
            target["boxes"].as_subclass(Tensor)[there], format="XYXY", canvas_size=self.size
        )
        cropped = {"boxes": boxes, "labels": target["labels"][there], "masks": tv_tensors.Mask(masks)}
        return tv_tensors.Image(picture), {**target, **cropped}


def _window(length: int, scaled: int, wanted: int) -> tuple[int, int, int, int]:
    """For a side that is resized from ``length`` to ``scaled``, a random part of at most ``wanted``.

    Returns:
        Where it begins, its length, the length that it becomes, and where that begins on the result.
    """
    if scaled <= wanted:
        return 0, length, scaled, int(torch.randint(wanted - scaled + 1, ()))
    part = max(1, round(length * wanted / scaled))
    return int(torch.randint(length - part + 1, ())), part, wanted, 0


class RandomQuarterTurn(nn.Module):
    """Turn image, masks and boxes by 0, 90, 180 or 270 degrees, each with the same probability.

    Not v2.RandomRotation, which resamples: a quarter turn moves pixels and changes none.
    """

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(image, target), turned."""
        turns = int(torch.randint(4, ()))
        if turns == 0:
            return image, target
        length = image.shape[2]  # from whose end y is counted
        boxes = target["boxes"].as_subclass(Tensor)
        for turn in range(turns):
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack([y1, length - x2, y2, length - x1], dim=1)
            length = image.shape[1 if turn % 2 == 0 else 2]
        image, masks = (x.as_subclass(Tensor).rot90(turns, (1, 2)) for x in (image, target["masks"]))
        size = (image.shape[1], image.shape[2])
        turned = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(masks),
        }
        return tv_tensors.Image(image), {**target, **turned}


class FitBoxes(nn.Module):
    """Fit boxes to the masks again, and drop objects of which too little is left.

    SOLO chooses an object's level by its box and its cell by its mask: both must belong to the same part.

    Args:
        min_area: pixels that stay an object, at least 1.
    """

    min_area: int

    def __init__(self, min_area: int = 1) -> None:
        super().__init__()
        self.min_area = min_area

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(image, target) with fitted boxes; x2 is the last column + 1."""
        masks = target["masks"].as_subclass(Tensor)
        rows, columns = occupied(masks)
        there = rows.any(1)
        if self.min_area > 1:
            # NumPy counts bytes a hundred times as fast as torch sums them.
            areas = [np.count_nonzero(mask) for mask in masks.numpy()]
            there &= torch.tensor(areas, dtype=torch.int64) >= self.min_area
        (top, bottom), (left, right) = span(rows[there]), span(columns[there])
        if not there.all():  # a copy takes longer than everything else here
            masks = masks[there]
        boxes = torch.stack([left, top, right, bottom], dim=1).float()
        return image, {
            **target,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=masks.shape[1:]),
            "labels": target["labels"][there],
            "masks": tv_tensors.Mask(masks),
        }


def train_transforms(
    *,
    rotate90: bool = False,
    shortest_size: Sequence[int] | None = None,
    canvas: int | tuple[int, int] | None = None,
    scale_jitter: tuple[float, float] | None = None,
    crop_size: int | tuple[int, int] | None = None,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    colour: float = 0.0,
    min_area: int = 1,
) -> v2.Compose:
    """Random augmentation of a training image, in the order of the arguments.

    Args:
        rotate90: turn by a random multiple of 90 degrees.
        shortest_size: resize so that the shorter side has one of these lengths in pixels, or None.
        canvas: (height, width) in pixels, or the side, that the image is fitted to with its ratio kept,
            before the factor of ``scale_jitter``, and cropped or padded to after it, as ``crop_size`` does:
            every result has this size. None for none; not together with ``shortest_size`` or ``crop_size``.
        scale_jitter: (low, high) of a random factor on the image's size, its logarithm uniform, or None.
        crop_size: (height, width) in pixels of a random crop, or its side; a smaller image comes to lie
            anywhere in it, the rest being the mean colour. None for no crop.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        colour: strength of brightness, contrast and saturation jitter; 0 for none.
        min_area: objects of fewer pixels at the end are left out.

    Returns:
        (image, target) -> (float32 image in 0..1, target); boxes are those of the masks.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value in (("flip", flip), ("vertical_flip", vertical_flip)):
        if not 0 <= value <= 1:
            raise ValueError(f"train_transforms: expected {name} in [0, 1], got {value}")
    if not 0 <= colour < math.inf:
        raise ValueError(f"train_transforms: expected colour >= 0 and finite, got {colour}")
    if min_area < 1:
        raise ValueError(f"train_transforms: expected min_area >= 1, got {min_area}")
    steps: list[nn.Module] = [RandomQuarterTurn()] if rotate90 else []
    if shortest_size is not None:
        if len(shortest_size) == 0 or min(shortest_size) < 1:
            raise ValueError(f"train_transforms: expected shortest_size in pixels, got {shortest_size}")
        steps.append(v2.RandomShortestSize(list(shortest_size)))
    fitted = None if canvas is None else _size("canvas", canvas)
    if fitted is not None:
        if shortest_size is not None or crop_size is not None:
            raise ValueError(
                "train_transforms: expected canvas or shortest_size and crop_size, got "
                f"canvas {canvas}, shortest_size {shortest_size}, crop_size {crop_size}"
            )
        crop_size = fitted
    if scale_jitter is not None and not _is_jitter(scale_jitter):
        raise ValueError(
            f"train_transforms: expected scale_jitter (low, high), {_SMALLEST} <= low <= high <= {_LARGEST}, "
            f"got {scale_jitter}"
        )
    jitter = scale_jitter or (1.0, 1.0)
    if crop_size is not None:
        size = _size("crop_size", crop_size)
        steps.append(RandomScaledCrop(*jitter, size, fitted is not None))
    elif scale_jitter is not None:
        steps.append(RandomScale(*jitter))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if vertical_flip:
        steps.append(v2.RandomVerticalFlip(vertical_flip))
    if colour:
        steps.append(v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour))
    # Cropping cuts and drops objects, and resizing can leave an object without pixels.
    return v2.Compose([*steps, FitBoxes(min_area), *_to_float()])


def _is_jitter(pair: Sequence[float]) -> bool:
    return len(pair) == 2 and _SMALLEST <= pair[0] <= pair[1] <= _LARGEST


def _size(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a pair or a side."""
    size = (value, value) if isinstance(value, int) else tuple(value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"train_transforms: expected {name} (height, width) >= 1, got {value}")
    return size[0], size[1]


def eval_transforms() -> v2.Compose:
    """(image, target) -> (float32 image in 0..1, target), otherwise as they are."""
    return v2.Compose(_to_float())


def _to_float() -> list[nn.Module]:
    kinds = {tv_tensors.Image: torch.float32, "others": None}
    return [v2.ToDtype(kinds, scale=True), v2.ToPureTensor()]
