"""SOLO as a torchvision-style detector, and short constructors of the paper's three systems (Table 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .._utils.checks import is_integer
from ._checks import check_images, check_targets
from .backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRETRAINED_FREEZE,
    build_backbone,
    default_norm,
    image_statistics,
)
from .fixed_inference import CANDIDATES, Detections, find_detections
from .heads import Head, HeadResult, build_head
from .inference import predict
from .losses import category_loss, mask_loss
from .settings import ModelSettings
from .targets import assign
from .tiling import Crop, assemble, cropping, find_pieces

SIZE_DIVISIBLE = 32


class SOLO(nn.Module):
    """Segmenting objects by locations, with or without grid attention.

    Follows torchvision's detection convention. ``model(images, targets)`` takes a list of images
    [3, H, W], float in 0..1, of any sizes, and

    - in training a list of dicts ``boxes`` float [N, 4] (xyxy, x2 = x1 + w), ``labels`` int64 [N] in
      0..num_classes-1 and ``masks`` [N, H, W] (what is not zero is the object), N = 0 included; it returns
      the dict ``loss_category`` (focal) and ``loss_mask`` (``mask_loss_weight`` x dice);
    - in evaluation returns a list of dicts ``boxes`` float32 [N, 4], ``labels`` int64 [N], ``scores``
      float32 [N] descending and ``masks`` bool [N, H, W] at the image's own size. There is no gradient.

    Args:
        backbone: from [B, 3, H, W] to a dict of the five maps P2..P6.
        head: the prediction head.
        settings: sizes, normalisation, scale ranges, the weight of the mask loss, thresholds and limits.

    Attributes:
        settings: thresholds and limits in it may be changed after the model is made.

    Raises:
        TypeError, ValueError: images or targets that are not as said above, or too thin to be resized, naming
            which one.
    """

    transform: nn.Module

    def __init__(self, backbone: nn.Module, head: Head, settings: ModelSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.transform = _Transform(settings)
        self.settings = settings

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def config(self) -> dict[str, Any]:
        """The arguments with which `build_solo` makes this model again, as plain types."""
        return {"num_classes": self.head.num_classes, **self.settings.as_dict()}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, instances in evaluation; see the class."""
        if self.training:
            check_images(images, next(self.parameters()))
            self.check_image_sizes([(image.shape[1], image.shape[2]) for image in images])
            if targets is None:
                raise ValueError("SOLO: expected targets in training mode, got None")
            check_targets(images, targets, self.head.num_classes)
            return self._losses(images, targets)
        return self.predict(images)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], *, rle: bool = False) -> list[dict[str, Any]]:
        """Instances of each image, as in evaluation.

        Args:
            images: see the class.
            rle: masks as COCO's run lengths, {"size": [H, W], "counts": bytes}, made without their pixels;
                needs pycocotools. Bool otherwise.

        Raises:
            TypeError, ValueError: see the class.
            RuntimeError: the model is in training mode.
        """
        if self.training:
            raise RuntimeError(
                "SOLO.predict: expected the model in evaluation mode (model.eval()), got training"
            )
        check_images(images, next(self.parameters()))
        self.check_image_sizes([(image.shape[1], image.shape[2]) for image in images])
        settings = self.settings
        if settings.tile is None:
            return self._predict(images, rle)
        return [
            self.predict_windows((image.shape[1], image.shape[2]), cropping(image), rle=rle)
            for image in images
        ]

    @torch.no_grad()
    def predict_windows(self, size: tuple[int, int], crop: Crop, *, rle: bool = False) -> dict[str, Any]:
        """Instances of an image that is read tile by tile, with tiles of ``settings.tile`` pixels a side.

        Only a few tiles and, for each instance, the bits inside its box are in memory. ``max_detections``
        limits the instances of each tile.

        Args:
            size: (height, width) of the picture.
            crop: (top, left, bottom, right) to that part of it, float [3, height, width] in 0..1.
            rle: as in `predict`.

        Raises:
            ValueError: ``settings.tile`` is None.
        """
        settings = self.settings
        if settings.tile is None:
            raise ValueError("SOLO.predict_windows: expected settings.tile to be an integer, got None")
        fill = normalisation(settings)[0]
        pieces = find_pieces(self._tiles, size, crop, settings.tile, settings.tile_overlap, fill)
        return assemble(pieces, size, rle)

    def _tiles(self, tiles: Sequence[Tensor]) -> list[dict[str, Any]]:
        return self._predict(tiles, False)

    def check_image_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Check that images of these (height, width) can be resized, without reading them.

        Raises:
            ValueError: one is so thin that a side would have no pixel left.
        """
        if self.training and not self.settings.resize_in_training:
            return
        if not self.training and self.settings.tile is not None:
            sizes = [(self.settings.tile, self.settings.tile)]
        # Training picks one of several at random: one that fails is an error.
        shorter = self.settings.sizes if self.training else self.settings.sizes[-1:]
        for i, size in enumerate(sizes):
            for length in shorter:
                resized = resized_size(size, length, self.settings.max_size)
                if min(resized) == 0:
                    raise ValueError(
                        f"SOLO: expected images[{i}] to keep a pixel on each side when resized to max_size "
                        f"{self.settings.max_size}, got {[3, *size]}, which would become {[3, *resized]}"
                    )

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        batch, resized = self.transform(
            list(images),
            [{"boxes": t["boxes"], "labels": t["labels"], "masks": _exact(t["masks"])} for t in targets],
        )
        result = self.features(batch.tensors)
        height, width = batch.tensors.shape[-2:]
        assigned = assign(
            resized,
            (height, width),
            self.head.num_grids,
            self.settings.scale_ranges,
            self.head.mask_strides,
            shared_cells=self.head.shared_cells,
        )
        return {
            "loss_category": category_loss(result.category_logits, assigned),
            "loss_mask": mask_loss(self.head, result, assigned, self.settings.mask_loss_weight),
        }

    def _predict(self, images: Sequence[Tensor], rle: bool) -> list[dict[str, Any]]:
        batch, _ = self.transform(list(images))
        originals = [(image.shape[1], image.shape[2]) for image in images]
        result = self.features(batch.tensors)
        return predict(self.head, result, batch.image_sizes, originals, self.settings, rle=rle)

    @torch.no_grad()
    def detect(self, batch: Tensor, candidates: int = CANDIDATES) -> Detections:
        """Steps 1 to 8 of docs/method.md, "Inference", without waiting for the device.

        Every shape follows from those of the arguments, so a CUDA graph can hold the call: docs/kernels.md,
        "CUDA graphs". The result is that of `predict` where ``left_out`` is 0.

        Args:
            batch: [B, 3, H, W], normalised, H and W multiples of 32, as ``transform`` makes it.
            candidates: K, (cell, class) pairs of a level that are drawn for each image, >= 1.

        Raises:
            ValueError: an argument is not as said above.
        """
        if batch.dim() != 4 or batch.shape[1] != 3 or any(n % SIZE_DIVISIBLE for n in batch.shape[2:]):
            what = f"of shape [B, 3, H, W], H and W multiples of {SIZE_DIVISIBLE}"
            raise ValueError(f"SOLO.detect: expected batch to be {what}, got {list(batch.shape)}")
        if not is_integer(candidates, 1):
            raise ValueError(f"SOLO.detect: expected candidates to be an integer >= 1, got {candidates!r}")
        return find_detections(self.head, self.features(batch), self.settings, candidates)

    def features(self, batch: Tensor) -> HeadResult:
        """Backbone and head before cells are chosen, for a normalised batch [B, 3, H, W]."""
        if batch.device.type == "cpu" and not torch.is_grad_enabled():
            # Convolutions and norms keep the order of their input. In this one a CPU's convolutions of
            # float32 are faster, but the backward pass of PyTorch's GroupNorm takes many times as long.
            batch = batch.contiguous(memory_format=torch.channels_last)
        result: HeadResult = self.head(list(self.backbone(batch).values()))
        return result


class _Transform(GeneralizedRCNNTransform):
    """torchvision's, which resizes, normalises and batches, padding to multiples of 32."""

    resize_in_training: bool

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(
            settings.sizes,
            settings.max_size,
            *normalisation(settings),
            size_divisible=SIZE_DIVISIBLE,
        )
        self.resize_in_training = settings.resize_in_training

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Do not change training images that already have the right size."""
        if self.training and not self.resize_in_training:
            return image, target
        return super().resize(image, target)


def normalisation(settings: ModelSettings) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel: ImageNet's where the settings leave them open."""
    return list(settings.image_mean or IMAGENET_MEAN), list(settings.image_std or IMAGENET_STD)


def build_solo(num_classes: int, settings: ModelSettings | None = None, **changes: Any) -> SOLO:
    """A SOLO of plain settings; its ``config`` holds all of them: ``build_solo(**config)`` makes it again.

    Args:
        num_classes: C, without a background class.
        settings: see `ModelSettings`; single ones may be given by name instead.

    Raises:
        ValueError: a setting outside of what is said there.
        TypeError: settings both ways.
    """
    if settings is None:
        settings = ModelSettings.parse(changes, "build_solo")
    elif changes:
        raise TypeError(f"build_solo: expected settings or single ones, got both: {', '.join(changes)}")
    settings = _settled(settings)
    head = build_head(num_classes, settings.fpn_channels, settings)
    backbone = build_backbone(
        settings.backbone,
        norm=settings.norm,
        pretrained=settings.pretrained,
        freeze=settings.freeze,
        deformable=settings.deformable_backbone,
        stride_in_1x1=settings.stride_in_1x1,
        out_channels=settings.fpn_channels,
    )
    return SOLO(backbone, head, settings)


def _settled(settings: ModelSettings) -> ModelSettings:
    """Replace null by what follows from the other settings, so that ``config`` makes the same model."""
    mean, std = image_statistics(settings.backbone)
    freeze = settings.freeze
    if freeze is None:
        freeze = PRETRAINED_FREEZE if settings.pretrained else 0
    found = {
        "norm": settings.norm or default_norm(settings.backbone, settings.pretrained),
        "freeze": freeze,
        "image_mean": settings.image_mean or mean,
        "image_std": settings.image_std or std,
    }
    return settings.model_copy(update=found)


def solo_without_coords(num_classes: int, **settings: Any) -> SOLO:
    """The first system of Table 3: no coordinate channels, no attention; `build_solo`'s other settings."""
    return build_solo(num_classes, coords=None, attention=None, **settings)


def solo(num_classes: int, **settings: Any) -> SOLO:
    """The second system of Table 3: SOLO with coordinate channels; `build_solo`'s other settings."""
    return build_solo(num_classes, attention=None, **settings)


def solo_with_attention(num_classes: int, **settings: Any) -> SOLO:
    """The third system of Table 3: SOLO with coordinates and grid attention; `build_solo`'s settings."""
    return build_solo(num_classes, **settings)


def resized_size(size: Sequence[int], min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) of an image in the model: as torchvision's transform reckons, rounding included."""
    scale = min(min_size / min(size), max_size / max(size))
    return math.floor(size[0] * scale), math.floor(size[1] * scale)


def _exact(masks: Tensor) -> Tensor:
    """Masks whose object survives the transform, which resizes them as floats and stores them as bytes."""
    return masks if masks.dtype in (torch.bool, torch.uint8) else masks != 0
