"""How an image file becomes pixels: one way for training, evaluation and prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .._utils.errors import SoloAttnError

# What PIL raises for broken files, and for ones that would unpack to more than its limit allows.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2"
)  # fmt: skip
"""Endings by which a folder is searched for images, in small letters."""

_BITS_PER_SAMPLE = 258  # the number of a TIFF's tag
_SIXTEEN = (";16B", ";16L", ";16N")


class ImageError(SoloAttnError, ValueError):
    """An image file that cannot be used: says which and why.

    Attributes:
        path: of the file.
        reason: why, without the file's name.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # as they came, so that it pickles
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: str | Path, *, exif: bool = True) -> Tensor:
    """An image file as uint8 [3, H, W]; grey, palette and transparent ones become RGB.

    Args:
        path: of the file.
        exif: turn the image as its EXIF orientation says. Annotations are in stored pixels, so datasets
            read without.

    Raises:
        ImageError: missing, truncated, no image, or with more than 8 bits a channel. In colour these are
            seen in PNG, TIFF, PPM and SGI; of JPEG 2000 and AVIF PIL makes 8 bits without saying so.
    """
    try:
        with Image.open(path) as image:
            if fault := depth_fault(image):
                raise ImageError(path, fault)
            rgb = (ImageOps.exif_transpose(image) if exif else image).convert("RGB")
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(path, f"cannot be read as an image: {error}") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def image_files(folder: str | Path, *, below: bool = False) -> list[Path]:
    """The image files of a folder by their endings (`IMAGE_SUFFIXES`), sorted; hidden ones are left out.

    Args:
        folder: to search; one that is not there has none.
        below: search the folders below it too.
    """
    found = Path(folder).rglob("*") if below else Path(folder).glob("*")
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def depth_fault(image: Image.Image) -> str | None:
    """What keeps an image that is opened, and not yet decoded, from becoming RGB without loss, or None."""
    if image.mode[0] in "IF":  # PIL cuts these off at 255, which leaves a white image
        return f"expected 8 bits a channel, got PIL's mode {image.mode!r}"
    bits = [8, *(_tile_bits(*tile) for tile in getattr(image, "tile", ()))]
    # A TIFF's decoders are told of 8 bits where its colours lie in planes; its tag says how many they are.
    bits += getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return f"expected 8 bits a channel, got {max(bits)}" if max(bits) > 8 else None


def _tile_bits(codec: str, extents: object, offset: object, arguments: Any) -> int:
    """Bits a channel of what PIL's decoder is told to read; 8 where it does not say."""
    told = arguments if isinstance(arguments, tuple) else (arguments,)
    # "RGB;16B" has 16 bits a channel, in this byte order; "BGR;16" has them a pixel.
    if codec == "SGI16" or any(isinstance(part, str) and part.endswith(_SIXTEEN) for part in told):
        return 16
    # PPM's are told the largest value, but for bitmaps.
    return told[-1].bit_length() if codec in ("ppm", "ppm_plain") and isinstance(told[-1], int) else 8


def unreadable(
    paths: Iterable[Path], advance: Callable[[int], None] | None = None
) -> list[tuple[int, ImageError]]:
    """Decode every image, on all cores, and return the number and fault of each that cannot be.

    Args:
        paths: of the images.
        advance: called with 1 after each image, from this thread.
    """

    def fault(path: Path) -> ImageError | None:
        try:
            read_image(path, exif=False)
        except ImageError as error:
            return error
        return None

    found = []
    # Threads are enough: PIL decodes without the interpreter's lock. An error, or Ctrl-C, ends `map`, which
    # cancels what has not begun.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for number, error in enumerate(pool.map(fault, paths)):
            if error is not None:
                found.append((number, error))
            if advance is not None:
                advance(1)
    return found
