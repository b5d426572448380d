"""SOLO as a torchvision-style detector, and short constructors of the paper's three systems (Table 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ._checks import are_ranges, check_images, check_settings, check_targets, is_finite
from .backbone import build_backbone, default_norm, image_statistics
from .head import SOLOHead
from .inference import InferenceOptions, predict
from .losses import category_loss, mask_loss
from .targets import SCALE_RANGES, assign

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
        transform: normalises, resizes and batches, padding to multiples of 32.
        scale_ranges: of each level, the sqrt of box area in pixels of the resized image that it takes.
        mask_loss_weight: lambda of eq. 4; > 0.
        inference: thresholds and limits.

    Raises:
        TypeError, ValueError: images or targets that are not as said above, or too thin to be resized, naming
            which one; ``scale_ranges`` or ``mask_loss_weight`` that are not as said above.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: SOLOHead,
        transform: GeneralizedRCNNTransform,
        *,
        scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
        mask_loss_weight: float = 3.0,
        inference: InferenceOptions | None = None,
    ) -> None:
        super().__init__()
        if not are_ranges(scale_ranges, len(head.num_grids)):
            raise ValueError(f"SOLO: expected scale_ranges to be five (low, high), got {scale_ranges!r}")
        if not is_finite(mask_loss_weight) or mask_loss_weight <= 0:
            raise ValueError(
                f"SOLO: expected mask_loss_weight to be a finite number > 0, got {mask_loss_weight!r}"
            )
        self.backbone = backbone
        self.head = head
        self.transform = transform
        self.scale_ranges = scale_ranges
        self.mask_loss_weight = mask_loss_weight
        self.inference = inference or InferenceOptions()
        self.config: dict[str, Any] = {}  # what `build_solo` was called with

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, instances in evaluation; see the class."""
        check_images(images)
        self.check_image_sizes([(image.shape[1], image.shape[2]) for image in images])
        if self.training:
            if targets is None:
                raise ValueError("SOLO: expected targets in training mode, got None")
            check_targets(images, targets, self.head.num_classes)
            return self._losses(images, targets)
        with torch.no_grad():
            return self._predict(images)

    def check_image_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Whether images of these (height, width) can be resized, which none needs to be read for.

        Raises:
            ValueError: one is so thin that no pixel would be left of a side.
        """
        transform = self.transform
        if transform.fixed_size is not None or (self.training and transform._skip_resize):
            return
        # Training takes one of several at random: what fails at times fails.
        shorter = transform.min_size if self.training else transform.min_size[-1:]
        for i, size in enumerate(sizes):
            for length in shorter:
                resized = resized_size(size, length, transform.max_size)
                if min(resized) == 0:
                    raise ValueError(
                        f"SOLO: expected images[{i}] to keep a pixel on each side when resized to max_size "
                        f"{transform.max_size}, got {[3, *size]}, which would become {[3, *resized]}"
                    )

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        batch, resized = self.transform(
            list(images),
            [{"boxes": t["boxes"], "labels": t["labels"], "masks": _exact(t["masks"])} for t in targets],
        )
        levels, grids, category_logits = self._features(batch.tensors)
        height, width = batch.tensors.shape[-2:]
        assigned = assign(resized, (height, width), self.head.num_grids, self.scale_ranges)
        return {
            "loss_category": category_loss(category_logits, assigned),
            "loss_mask": mask_loss(self.head, levels, grids, assigned, self.mask_loss_weight),
        }

    def _predict(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        batch, _ = self.transform(list(images))
        originals = [(image.shape[1], image.shape[2]) for image in images]
        features = self._features(batch.tensors)
        return predict(self.head, *features, batch.image_sizes, originals, self.inference)

    def _features(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        levels = self.head.levels(list(self.backbone(batch).values()))
        grids = self.head.grids(levels)
        return levels, grids, self.head.category_logits(grids)


def build_solo(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    norm: str | None = None,
    pretrained: bool | str = False,
    freeze: int | Literal["all"] | None = None,
    fpn_channels: int = 256,
    head_channels: int = 256,
    num_convs: int = 7,
    num_grids: Sequence[int] = (40, 36, 24, 16, 12),
    scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
    coords: str | None = "paper",
    attention: bool = True,
    attention_scale: float | str = "cosine",
    cosine_factor: float = 1.0,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    resize_in_training: bool = True,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    mask_loss_weight: float = 3.0,
    score_threshold: float = 0.1,
    mask_threshold: float = 0.5,
    nms_pre: int = 500,
    nms_kernel: str = "gaussian",
    nms_sigma: float = 2.0,
    final_score_threshold: float = 0.05,
    max_detections: int = 100,
) -> SOLO:
    """A SOLO of plain settings; its ``config`` holds them all, so that ``build_solo(**config)`` remakes it.

    Args:
        num_classes: C, without a background class.
        backbone: resnet18, resnet34, resnet50, resnet101 or "timm/<name>" (see `build_backbone`).
        norm: of the backbone: "frozen_bn", "bn" or "gn"; None for "frozen_bn" with pretrained weights, and
            without for "gn" in a ResNet and what the architecture has in timm's.
        pretrained: False, True for published ImageNet weights (downloads them), "package" or a file.
        freeze: stages of the backbone that are not trained, 0..5, or "all"; None for 2 with weights.
        fpn_channels: channels of the pyramid.
        head_channels: channels of the towers, a multiple of 32.
        num_convs: groups in each tower.
        num_grids: S of each level (Table 2); at least 2 with 32 head_channels.
        scale_ranges: of each level, the sqrt of box area in pixels of the resized image; inclusive.
        coords: "paper" (eq. 1), "inclusive" (mmdetection's) or None.
        attention: add the attention branch (paper section 3.3, 3.4).
        attention_scale: a number, "rsqrt" for C^-1/2, or "cosine" (see `SOLOHead`).
        cosine_factor: of "cosine" (see `SOLOHead`).
        min_size: shorter side in pixels that images are resized to; of several, training takes one at
            random and evaluation the last.
        max_size: limit of the longer side.
        resize_in_training: False takes training images as they come, for data that is cropped to size.
        image_mean: of each channel, taken off; None for that of the backbone's published weights.
        image_std: of each channel, divided by; None likewise.
        mask_loss_weight: lambda of eq. 4; > 0.
        score_threshold: see `InferenceOptions`, also for the arguments that follow.
        mask_threshold: "
        nms_pre: "
        nms_kernel: "
        nms_sigma: "
        final_score_threshold: "
        max_detections: "

    Raises:
        ValueError: an argument outside of what is said above.
    """
    norm = norm or default_norm(backbone, pretrained)  # settled here, so that config remakes the same model
    published = image_statistics(backbone)
    image_mean = published[0] if image_mean is None else image_mean
    image_std = published[1] if image_std is None else image_std
    config = {k: _plain(v) for k, v in locals().items() if k != "published"}
    check_settings(fpn_channels, min_size, max_size, image_mean, image_std)
    head = SOLOHead(
        num_classes,
        in_channels=fpn_channels,
        channels=head_channels,
        num_convs=num_convs,
        num_grids=num_grids,
        coords=coords,
        attention=attention,
        attention_scale=attention_scale,
        cosine_factor=cosine_factor,
    )
    transform = GeneralizedRCNNTransform(
        list(min_size) if isinstance(min_size, Sequence) else min_size,
        max_size,
        list(image_mean),
        list(image_std),
        size_divisible=SIZE_DIVISIBLE,
        _skip_resize=not resize_in_training,
    )
    options = InferenceOptions(
        score_threshold,
        mask_threshold,
        nms_pre,
        nms_kernel,
        nms_sigma,
        final_score_threshold,
        max_detections,
    )
    model = SOLO(
        build_backbone(backbone, norm=norm, pretrained=pretrained, freeze=freeze, out_channels=fpn_channels),
        head,
        transform,
        scale_ranges=scale_ranges,
        mask_loss_weight=mask_loss_weight,
        inference=options,
    )
    model.config = config
    return model


def solo_without_coords(num_classes: int, **settings: Any) -> SOLO:
    """The first system of Table 3: no coordinate channels, no attention; `build_solo`'s other settings."""
    return build_solo(num_classes, coords=None, attention=False, **settings)


def solo(num_classes: int, **settings: Any) -> SOLO:
    """The second system of Table 3: SOLO with coordinate channels; `build_solo`'s other settings."""
    return build_solo(num_classes, attention=False, **settings)


def solo_with_attention(num_classes: int, **settings: Any) -> SOLO:
    """The third system of Table 3: SOLO with coordinates and grid attention; `build_solo`'s settings."""
    return build_solo(num_classes, attention=True, **settings)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a configuration is the same before and after JSON or YAML."""
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def resized_size(size: Sequence[int], min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) of an image in the model: as torchvision's transform reckons, rounding included."""
    scale = min(min_size / min(size), max_size / max(size))
    return math.floor(size[0] * scale), math.floor(size[1] * scale)


def _exact(masks: Tensor) -> Tensor:
    """Masks whose object survives the transform, which resizes them as floats and stores them as bytes."""
    return masks if masks.dtype in (torch.bool, torch.uint8) else masks != 0
