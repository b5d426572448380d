"""How PIL opens a file: few formats, a limit of pixels, and orientations that viewers apply."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

from .._utils.limits import PREFIX, limits

# Not all that PIL supports: for EPS it calls Ghostscript, and rarely used decoders are the least tested.
_WANTED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "SGI", "TIFF", "WEBP")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
"""Names of the formats that are read, of those that PIL was built with."""

_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_QUARTER_TURNS = (5, 6, 7, 8)


class TooManyPixelsError(ValueError):
    """An image with more than ``solo_attn.limits.image_pixels``."""


@contextmanager
def open_picture(file: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """PIL's image of a file, opened and not yet decoded.

    Raises:
        TooManyPixelsError: more than ``solo_attn.limits.image_pixels``.
        Exception: whatever PIL and its decoders raise for what is no image, here or when it is decoded.
    """
    with Image.open(file, formats=FORMATS) as image:
        check_pixels(image.height, image.width)
        yield image


def check_pixels(height: int, width: int) -> None:
    """Refuse a picture that would be read whole, before it is.

    Raises:
        TooManyPixelsError: more pixels than ``solo_attn.limits.image_pixels``.
    """
    if width * height > limits.image_pixels:
        most = f"{limits.image_pixels} pixels ({PREFIX}IMAGE_PIXELS)"
        raise TooManyPixelsError(f"expected at most {most}, got {width} x {height}")


def stored_and_shown(image: Image.Image) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """The EXIF orientation (1 where there is none), and (height, width) as stored and as viewers show it."""
    # If a PNG's header has no orientation, PIL decodes the whole image to see whether it comes later.
    lazy = image.format == "PNG" and "exif" not in image.info
    found = 1 if lazy else image.getexif().get(_ORIENTATION, 1)
    orientation = found if isinstance(found, int) and 1 <= found <= 8 else 1
    stored = (image.height, image.width)
    return orientation, stored, stored[::-1] if orientation in _QUARTER_TURNS else stored


def annotated_fault(image: Image.Image, size: tuple[int, int]) -> str | None:
    """Why annotations of ``size`` (height, width) would not be where they were drawn, or None.

    Some tools annotate an image with an EXIF orientation as stored, others as shown. If the size says which,
    datasets read it so.
    """
    orientation, stored, shown = stored_and_shown(image)
    if size not in (stored, shown):
        turned = "" if stored == shown else f" (or {shown[1]} x {shown[0]} by its EXIF orientation)"
        return f"expected {size[1]} x {size[0]} pixels as annotated, got {stored[1]} x {stored[0]}{turned}"
    if orientation != 1 and stored == shown:
        return (
            f"expected an image without EXIF orientation, got {orientation}, and its size does not say "
            "whether it was annotated as stored or as shown; save it upright, without the tag"
        )
    return None


def warn_of_frames(path: str | Path, image: Image.Image) -> None:
    """Warn if a file has several pages or frames, of which the first is read. A phone's MPO has previews."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        warnings.warn(f"{path}: {frames} pages or frames, of which the first is read", stacklevel=2)
