"""Every setting of a model: its type, range, default and meaning, declared once.

`build_solo`, the constructors of head and detector, checkpoints, the section ``model`` of a training
configuration and the command line all use these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import StrictStr, model_validator
from typing_extensions import Self

from .._utils.settings import Flag, Integer, Number, Settings

Positive = Annotated[Integer, Ge(1)]
NotNegative = Annotated[Integer, Ge(0)]
Share = Annotated[Number, Ge(0), Le(1)]
Percent = Annotated[Number, Ge(0), Le(100)]
GROUPS = 32  # of GroupNorm

_PUBLISHED: dict[str, Any] = {"coords": "inclusive", "attention": None}
OF_HEADS: dict[str, dict[str, Any]] = {
    "solo": {},
    "decoupled": {**_PUBLISHED},
    "decoupled_light": {
        **_PUBLISHED,
        "num_convs": 4,
        "scale_ranges": ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)),
        "min_size": 512,
        "max_size": 852,
    },
    "solov2": {**_PUBLISHED, "head_channels": 512, "num_convs": 4},
    "solov2_light": {
        **_PUBLISHED,
        "num_convs": 2,
        "kernel_channels": 128,
        "scale_ranges": ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)),
        "min_size": 448,
        "max_size": 768,
    },
}
"""Defaults of each head, as it was published; the others are those of `ModelSettings`."""


class HeadSettings(Settings):
    """The prediction head: its towers, its grids, its attention branch."""

    head: Literal["solo", "decoupled", "decoupled_light", "solov2", "solov2_light"] = "solo"
    """Which head (docs/heads.md). Channels, convolutions, scale ranges, image sizes and coordinates that are
    not set have the values with which that head was published; by default only SOLO has attention."""
    head_channels: Positive = 256
    """Channels of the towers, a multiple of 32 (GroupNorm)."""
    num_convs: Positive = 7
    """Groups of [3x3 convolution, GroupNorm, ReLU] in each tower."""
    kernel_channels: Positive = 256
    """E: channels of SOLOv2's mask features and of each cell's kernel; a multiple of 32."""
    feature_channels: Positive = 128
    """Channels of the convolutions that make SOLOv2's mask features, a multiple of 32."""
    deformable: Literal["last", "towers", "all"] | None = None
    """Deformable convolutions (DCNv2) in the head: the last one of each tower, all of the towers, all of the
    towers and of SOLOv2's mask features, or none."""
    num_grids: tuple[Positive, Positive, Positive, Positive, Positive] = (40, 36, 24, 16, 12)
    """S of each level (Table 2): a level is divided into S x S cells."""
    coords: Literal["paper", "inclusive"] | None = "paper"
    """Coordinate channels of the mask branch: eq. 1, with both ends as mmdetection has them, or none."""
    attention: Literal["gated", "cosine", "rsqrt", "literal"] | None = "gated"
    """What is added to the mask logits: g (cosine - b) with g and b learned for each level, the cosines, the
    dot products times C^-1/2, the dot products as the paper has them, or nothing."""
    attention_vectors: Literal["features", "projection", "position"] = "position"
    """V of eq. 2: the features of the cells (the paper's), a learned projection of them to 32 channels, or a
    projection of features and position, concatenated with a code of the position."""
    attention_gain: Annotated[Number, Gt(0)] = 5.0
    """Initial value of g, where attention is "gated"."""
    attention_offset: Number = 0.5
    """Initial value of b, the cosine at which the attention is 0, where attention is "gated"."""
    masks: Literal["chosen", "dense"] = "chosen"
    """Compute only the masks of the cells that targets or scores choose, or the S^2 x 2h x 2w logits of all
    cells, as in the paper's figure 2: the same results with more time and memory."""

    @model_validator(mode="after")
    def _as_the_head_was_published(self) -> Self:
        own = OF_HEADS[self.head].items()
        # Not marked as set: another head that is chosen later brings its own.
        self.__dict__.update(
            (name, value)
            for name, value in own
            if name in type(self).model_fields and name not in self.model_fields_set
        )
        return self

    @model_validator(mode="after")
    def _fits_the_head(self) -> Self:
        if self.head.startswith("decoupled") and self.attention is not None:
            raise ValueError(
                f"expected attention to be null with head {self.head!r}, whose masks are products of two "
                f"probabilities and have no logits to add to, got {self.attention!r}"
            )
        if self.masks == "dense" and self.head != "solo":
            raise ValueError(
                "expected masks to be 'chosen' with a head other than 'solo', which is what the paper draws "
                f"the masks of all cells of, got 'dense' and head {self.head!r}"
            )
        return self

    @model_validator(mode="after")
    def _fits_group_norm(self) -> Self:
        for name in ("head_channels", "kernel_channels", "feature_channels"):
            if getattr(self, name) % GROUPS:
                raise ValueError(
                    f"expected {name} to be a multiple of {GROUPS} (GroupNorm), got {getattr(self, name)}"
                )
        # The category branch of such a level would have the same output for every image, and never learn.
        if self.head_channels == GROUPS and min(self.num_grids) == 1:
            raise ValueError(
                f"expected num_grids to be at least 2 with head_channels {GROUPS} (GroupNorm makes the same "
                f"of any single value), got {list(self.num_grids)}"
            )
        return self


class InferenceSettings(Settings):
    """Thresholds and limits of a prediction; the steps are those of docs/method.md, "Inference"."""

    score_threshold: Share = 0.1
    """Candidates have a category score above this (step 2)."""
    mask_threshold: Annotated[Number, Gt(0), Lt(1)] = 0.5
    """Pixels of a mask have a probability above this (steps 3 and 9)."""
    nms_pre: Positive = 500
    """The number of best candidates of an image that reach Matrix NMS (step 5)."""
    nms_kernel: Literal["gaussian", "linear"] = "gaussian"
    """How a score decays with the overlap (step 6)."""
    nms_sigma: Annotated[Number, Gt(0)] = 2.0
    """Sigma of the gaussian (step 6)."""
    final_score_threshold: Share = 0.05
    """Instances whose decayed score is at least this are kept (step 7)."""
    max_detections: Positive = 100
    """The largest number of instances of an image, or of a tile (step 8)."""
    tile: Positive | None = None
    """Predict an image in square tiles with this side, in pixels of the original image, each resized as an
    image is; null predicts the whole image at once."""
    tile_overlap: NotNegative = 64
    """Pixels that neighbouring tiles share at least; smaller objects lie whole in at least one tile."""

    @model_validator(mode="after")
    def _tiles_advance(self) -> Self:
        if self.tile is not None and self.tile_overlap >= self.tile:
            raise ValueError(
                f"expected tile_overlap to be an integer < tile, got {self.tile_overlap} and tile {self.tile}"
            )
        return self


Range = tuple[Number, Number]


class ModelSettings(InferenceSettings, HeadSettings):
    """A whole model, except for its number of classes, which the data decides."""

    backbone: StrictStr = "resnet50"
    """resnet18, resnet34, resnet50, resnet101 (torchvision's), or "timm/<name>" for one of timm's."""
    norm: Literal["frozen_bn", "bn", "gn"] | None = None
    """Normalisation of the backbone: frozen statistics for fine-tuning, batch norm for large batches, group
    norm for training from scratch with small ones; null is "frozen_bn" with pretrained weights, and without
    them "gn" in a ResNet and the architecture's own in timm's."""
    pretrained: Flag | StrictStr = False
    """Initial weights of the backbone: true for published ImageNet weights, which are downloaded, "package"
    for those in an installed package, or the file of a state dict."""
    freeze: Annotated[Integer, Ge(0), Le(5)] | Literal["all"] | None = None
    """The number of first stages of the backbone that are not trained (the stem is the first), or "all"; null
    is 2 with pretrained weights and 0 without."""
    deformable_backbone: Flag = False
    """Deformable convolutions (DCNv2) in the last three stages of a resnet50 or resnet101."""
    stride_in_1x1: Flag = False
    """Bottlenecks of a resnet50 or resnet101 have their stride in the first convolution, as in Caffe's and
    detectron2's weights, and not in the second, as in torchvision's."""
    fpn_channels: Positive = 256
    """Channels of the pyramid."""
    scale_ranges: tuple[Range, Range, Range, Range, Range] = (
        (1, 96),
        (48, 192),
        (96, 384),
        (192, 768),
        (384, 2048),
    )
    """Sizes of the objects of each level: square root of the box's area in pixels of the resized image,
    inclusive."""
    min_size: Positive | list[Positive] = 800
    """Shorter side in pixels that images are resized to; of several, training uses a random one and
    evaluation the last."""
    max_size: Positive = 1333
    """Limit of the longer side in pixels."""
    resize_in_training: Flag = True
    """False does not resize training images, for data that is resized or cropped when it is read."""
    percentiles: tuple[Percent, Percent] | None = None
    """[low, high], such as [0.5, 99.5]: the percentiles of each channel of an image that become 0 and 1, in
    training and in prediction, for images of more than 8 bits; null uses 8-bit values as they are."""
    image_mean: tuple[Number, Number, Number] | None = None
    """Mean of each channel of images in 0..1, which is subtracted; null is that of the backbone's published
    weights."""
    image_std: tuple[Number, Number, Number] | None = None
    """Standard deviation of each channel, > 0, which images are divided by; null likewise."""
    mask_loss_weight: Annotated[Number, Gt(0)] = 3.0
    """Lambda of eq. 4."""

    @model_validator(mode="after")
    def _fits_the_images(self) -> Self:
        sizes = self.sizes
        if not sizes or self.max_size < max(sizes):
            raise ValueError(
                f"expected min_size to be one or several integers <= max_size, got {self.min_size} and "
                f"max_size {self.max_size}"
            )
        if any(low > high for low, high in self.scale_ranges):
            got = [list(pair) for pair in self.scale_ranges]
            raise ValueError(f"expected scale_ranges to be pairs of low <= high, got {got}")
        if self.percentiles is not None and self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"expected percentiles to be low < high, got {list(self.percentiles)}")
        if self.image_std is not None and min(self.image_std) <= 0:
            raise ValueError(f"expected image_std to be three numbers > 0, got {list(self.image_std)}")
        return self

    @property
    def sizes(self) -> list[int]:
        """``min_size`` as a list."""
        return [self.min_size] if isinstance(self.min_size, int) else list(self.min_size)
