"""How an image file becomes pixels: one way for training, evaluation and prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from .._utils.errors import MissingExtraError, SoloAttnError
from .._utils.readers import one_line
from .pictures import TooManyPixelsError, annotated_fault, check_pixels, open_picture, warn_of_frames
from .windows import NotByWindowsError, Windows, is_tiff, open_tiff

# A decoder may raise anything: TypeError, struct.error, OverflowError and MemoryError have been seen.
UNREADABLE = (Exception,)
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2", ".avif"
)  # fmt: skip
"""Endings of the image files that are searched in a folder, in lower case."""

Percentiles = tuple[float, float] | None
"""The percentiles of each channel of an image that become 0 and 255; None uses 8-bit values as they are."""

_HELP = "model.percentiles scales it"
_BITS_PER_SAMPLE = 258  # the number of a TIFF's tag
_SIXTEEN = (";16B", ";16L", ";16N")


class ImageError(SoloAttnError, ValueError):
    """An image file that cannot be used: names the file and the reason.

    Attributes:
        path: of the file.
        reason: why, without the file's name.
    """

    path: str | Path
    reason: str

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # as they came, so that it pickles
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: str | Path, *, exif: bool = True, percentiles: Percentiles = None) -> Tensor:
    """An image file as uint8 [3, H, W]; grey, palette and transparent ones become RGB.

    Args:
        path: of the file.
        exif: turn the image as its EXIF orientation says. Annotations are in stored pixels, so datasets
            read without.
        percentiles: see `Percentiles`. With these, PNGs of 16 bits and, with the extra "tiff", TIFFs of any
            integers or floats are read too.

    Raises:
        ImageError: missing, truncated, no image, or with more than 8 bits a channel and no ``percentiles``.
            In colour these are seen in PNG, TIFF, PPM and SGI; of JPEG 2000 and AVIF PIL makes 8 bits without
            saying so.
        MissingExtraError: the extra "tiff" is not installed, and needed.
    """
    with _readable(path):
        return _opened(path, exif, percentiles).whole()


def open_image(path: str | Path, *, percentiles: Percentiles = None) -> Windows:
    """What `read_image` reads, by windows where the file allows it: TIFF, with the extra "tiff".

    Other files are read whole, as are TIFFs with other layouts than one picture in grey or RGB.

    Raises:
        ImageError, MissingExtraError: as `read_image`.
    """
    with _readable(path):
        if is_tiff(path):
            try:
                found = open_tiff(path)
            except (MissingExtraError, NotByWindowsError):
                pass  # PIL may still know it
            else:
                found = replace(found, array=_Later(found.array, path))
                if percentiles is not None:
                    return found.scaled(percentiles)
                if found.array.dtype == np.uint8:
                    return found
        return Windows(read_image(path, percentiles=percentiles).numpy(), "CYX")


def sample_values(path: str | Path) -> NDArray[Any]:
    """The values of an image before they are scaled, of which `Percentiles` are taken: [1 or 3, h, w].

    Raises:
        ImageError, MissingExtraError: as `read_image` with ``percentiles``.
    """
    with _readable(path):
        return _unscaled(path, False, (0.0, 100.0)).sample()


def file_fault(path: Path, entry: Mapping[str, Any], decode: bool, percentiles: Percentiles) -> str | None:
    """Why a file does not match its entry in COCO's ``images``, or None.

    Args:
        path: of the file.
        entry: with its annotated height and width.
        decode: also decode the pixels; otherwise only the header is read.
        percentiles: see `Percentiles`.

    Raises:
        MissingExtraError: as `read_image`.
    """
    wanted = (entry["height"], entry["width"])
    try:
        with _readable(path):
            if not path.is_file():
                return "no such file"
            if path.stat().st_size == 0:
                return "the file is empty"
            with _header(path, percentiles) as (kind, image):
                height, width = _size(path, kind, image)
                if decode:
                    read_image(path, exif=False, percentiles=percentiles)
                with suppress(*UNREADABLE):  # EXIF data may be damaged
                    if image is not None:
                        warn_of_frames(path, image)
                        return annotated_fault(image, wanted)
    except ImageError as error:
        return error.reason
    if (height, width) == wanted:
        return None
    return f"expected {wanted[1]} x {wanted[0]} pixels as annotated, got {width} x {height}"


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Every error of a decoder is an `ImageError`."""
    try:
        yield
    except (ImageError, MissingExtraError):
        raise
    except UNREADABLE as error:
        raise ImageError(path, f"cannot be read as an image: {one_line(error)}") from error


class _Later:
    """An array in a file, whose parts are read when they are wanted: an error then names the file too."""

    def __init__(self, array: Any, path: str | Path) -> None:
        self._array, self._path = array, path
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, where: Any) -> NDArray[Any]:
        with _readable(self._path):
            return np.asarray(self._array[where])


def _opened(path: str | Path, exif: bool, percentiles: Percentiles) -> Windows:
    found = _unscaled(path, exif, percentiles)
    if percentiles is not None:
        return found.scaled(percentiles)
    if found.array.dtype != np.uint8:
        raise ImageError(path, f"expected 8 bits a channel, got {found.array.dtype}; {_HELP}")
    return found


def _unscaled(path: str | Path, exif: bool, percentiles: Percentiles) -> Windows:
    """PIL's image; what PIL has no mode for is read by tifffile and torchvision."""
    with _header(path, percentiles) as (kind, image):
        if kind == "TIFF" or image is None:
            return _tiff(path)
        if kind == "PNG":
            return Windows(decode_image(read_file(str(path)), ImageReadMode.UNCHANGED).numpy(), "CYX")
        if exif:
            warn_of_frames(path, image)
        rgb = (ImageOps.exif_transpose(image) if exif else image).convert("RGB")
    return Windows(np.ascontiguousarray(np.array(rgb).transpose(2, 0, 1)), "CYX")


def _size(path: str | Path, kind: str | None, image: Image.Image | None) -> tuple[int, int]:
    """(height, width) of what `_header` gives."""
    return _tiff(path).size if kind == "TIFF" or image is None else (image.height, image.width)


def _tiff(path: str | Path) -> Windows:
    """A TIFF that PIL does not read, within the limit of pixels."""
    found = open_tiff(path)
    check_pixels(*found.size)
    return found


@contextmanager
def _header(path: str | Path, percentiles: Percentiles) -> Iterator[tuple[str | None, Image.Image | None]]:
    """The format of a file that PIL does not read without loss, else None, and PIL's image if it has one."""
    with ExitStack() as opened:
        image: Image.Image | None = None
        try:
            image = opened.enter_context(open_picture(path))
            fault, kind = depth_fault(image), image.format
        except (TooManyPixelsError, Image.DecompressionBombError):
            raise
        except UNREADABLE:
            # Floats of 64 bits and large files in big-endian order, for example, are no picture to PIL.
            if not is_tiff(path):
                raise
            fault, kind = None, "TIFF"
        else:
            if fault is not None and percentiles is None:
                raise ImageError(path, f"{fault}; {_HELP}")
            if fault is not None and kind not in ("PNG", "TIFF"):
                raise ImageError(path, f"{fault} in a {kind}; of those only PNG and TIFF are scaled")
            kind = None if fault is None else kind
        yield kind, image


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
    """Why an image that is opened, but not yet decoded, cannot become RGB without loss, or None."""
    if image.mode[0] in "IF":  # PIL clips these at 255, which leaves a white image
        return f"expected 8 bits a channel, got PIL's mode {image.mode!r}"
    bits = [8, *(_tile_bits(*tile) for tile in getattr(image, "tile", ()))]
    # A TIFF's decoders report 8 bits if its colours are stored in planes; its tag has the real number.
    bits += getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return f"expected 8 bits a channel, got {max(bits)}" if max(bits) > 8 else None


def _tile_bits(codec: str, extents: object, offset: object, arguments: Any) -> int:
    """The bits of a channel that PIL's decoder will read; 8 if it does not say."""
    told = arguments if isinstance(arguments, tuple) else (arguments,)
    # "RGB;16B" has 16 bits a channel, in this byte order; "BGR;16" has them a pixel.
    if codec == "SGI16" or any(isinstance(part, str) and part.endswith(_SIXTEEN) for part in told):
        return 16
    # PPM's are told the largest value, but for bitmaps.
    return told[-1].bit_length() if codec in ("ppm", "ppm_plain") and isinstance(told[-1], int) else 8


def unreadable(
    paths: Iterable[Path],
    advance: Callable[[int], None] | None = None,
    percentiles: Percentiles = None,
) -> list[tuple[int, ImageError]]:
    """Decode every image, on all cores, and return the number and fault of each that cannot be.

    Args:
        paths: of the images.
        advance: called with 1 after each image, from this thread.
        percentiles: see `Percentiles`.
    """

    def fault(path: Path) -> ImageError | None:
        try:
            read_image(path, exif=False, percentiles=percentiles)
        except ImageError as error:
            return error
        return None

    found = []
    # Threads are enough: PIL decodes without the interpreter's lock. An error, or Ctrl-C, ends `map`, which
    # cancels what has not started.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for number, error in enumerate(pool.map(fault, paths)):
            if error is not None:
                found.append((number, error))
            if advance is not None:
                advance(1)
    return found
