"""How an image file becomes pixels: one way for training, evaluation and prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# What PIL raises for broken files, and for ones that would unpack to more than it thinks healthy.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ImageError(ValueError):
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
        exif: turn the image as its EXIF orientation says. Annotations are in stored pixels, so data sets
            read without.

    Raises:
        ImageError: missing, truncated, no image, or with more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if fault := mode_fault(image.mode):
                raise ImageError(path, fault)
            rgb = (ImageOps.exif_transpose(image) if exif else image).convert("RGB")
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(path, f"cannot be read as an image: {error}") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def mode_fault(mode: str) -> str | None:
    """What keeps an image of PIL's ``mode`` from becoming RGB, or None."""
    if mode[0] in "IF":  # PIL cuts these off at 255, which leaves a white image
        return f"expected 8 bits a channel, got PIL's mode {mode!r}"
    return None


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
