"""Limits on what is read from files, each with its default, in one place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, ClassVar

from annotated_types import Ge
from pydantic import ConfigDict, ValidationError

from .errors import UsageError
from .settings import Integer, Settings, explain

Count = Annotated[Integer, Ge(1)]
PREFIX = "SOLO_ATTN_MAX_"


class Limits(Settings):
    """Bounds on what is read from files, against damaged and hostile ones.

    Each may be set by an environment variable, such as ``SOLO_ATTN_MAX_IMAGE_PIXELS=500000000``, or in
    Python by ``solo_attn.limits.image_pixels = 500_000_000``.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(validate_assignment=True)

    image_pixels: Count = 100_000_000
    """Width x height of an image file; one of 100 million takes 300 MB when it is decoded."""
    json_bytes: Count = 2_000_000_000
    """Size of a JSON or YAML file; parsed it takes about ten times as much memory."""
    polygon_points: Count = 100_000
    """Points of all polygons of one object."""
    polygon_outline: Count = 2_000_000
    """Length in pixels of the outlines of one object's polygons; drawing takes 120 bytes for each."""
    image_annotations: Count = 10_000
    """Annotations of one image; training holds a mask of the image's size for each."""
    name_characters: Count = 200
    """Length of a class's name."""
    model_parameters: Count = 1_000_000_000
    """Numbers in the weights of a checkpoint's model."""
    model_layers: Count = 1_000
    """``num_convs`` of a checkpoint's model."""
    model_scores: Count = 50_000_000
    """Cells x classes of a checkpoint's model: the scores of an image, of which each may be a candidate."""
    mask_bytes: Count = 4 * 2**30
    """Masks of an image as pixels, a byte each; what leaves as run lengths has no such limit."""


def _from_environment() -> Limits:
    names = {PREFIX + name.upper(): name for name in Limits.model_fields}
    values: dict[str, object] = {}
    for variable, name in names.items():
        if text := os.environ.get(variable):
            values[name] = int(text) if text.isascii() and text.isdigit() else text
    try:
        return Limits.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{PREFIX}...: {explain(Limits, values, error)}") from None


limits: Limits = _from_environment()
"""The limits of this process."""


def refuse_pixels(op: str, count: int, size: Sequence[int]) -> None:
    """Refuse masks that would fill the memory as pixels.

    Raises:
        UsageError: ``count`` masks of (height, width) take more than ``limits.mask_bytes``.
    """
    height, width = size
    if count * height * width > limits.mask_bytes:
        raise UsageError(
            f"{op}: expected masks of at most {limits.mask_bytes} bytes ({PREFIX}MASK_BYTES), got {count} of "
            f"{height} x {width} pixels; take run lengths (rle=True) or fewer (max_detections)"
        )
