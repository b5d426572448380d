"""Images that are read in windows: only the requested part of a file is in memory.

Values of more than 8 bits are scaled to 8 by percentiles of the image itself, separately for each channel.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._utils.errors import extra_needed
from .._utils.limits import PREFIX, limits

LOOKED_AT = 2**22  # the largest number of pixels for percentiles, on a regular grid of rows and columns
_TIFF_BEGINS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LAYOUTS = ("YX", "YXS", "SYX", "CYX")


class NotByWindowsError(ValueError):
    """A layout that is not read here; the message names it."""


@dataclass(frozen=True)
class Windows:
    """An image, in memory or in a file.

    Attributes:
        array: what slices of give arrays: NumPy's, a memory map, zarr's.
        axes: of ``array``, "YX", or those with channels in front or behind, "CYX" and "YXC".
        limits: float64 [2, channels], values that become 0 and 255; None leaves uint8 as it is.
    """

    array: Any
    axes: str
    limits: NDArray[np.float64] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        y = self.axes.index("Y")
        return int(self.array.shape[y]), int(self.array.shape[y + 1])

    def window(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """A part as uint8 [3, bottom - top, right - left]; grey is repeated, transparency left out."""
        found = self._channels(slice(top, bottom), slice(left, right))
        if self.limits is not None:
            found = _scaled(found, self.limits)
        return torch.from_numpy(np.array(np.broadcast_to(found, (3, *found.shape[1:])), order="C"))

    def whole(self) -> Tensor:
        """All of it, uint8 [3, H, W]."""
        in_memory = self.axes == "CYX" and self.limits is None and type(self.array) is np.ndarray
        if in_memory and len(self.array) == 3 and self.array.flags.writeable:
            return torch.from_numpy(self.array)  # no copy
        return self.window(0, 0, *self.size)

    def scaled(self, percentiles: tuple[float, float]) -> Windows:
        """The same image, its channels scaled from their lower percentile (0) to their upper one (255).

        They are those of `sample`. NaN and infinity are ignored.
        """
        sample = self.sample().astype(np.float64)
        limits = np.zeros((2, len(sample)))
        for k, channel in enumerate(sample):
            numbers = channel[np.isfinite(channel)]
            if numbers.size:
                limits[:, k] = np.percentile(numbers, percentiles)
        return Windows(self.array, self.axes, limits)

    def sample(self) -> NDArray[Any]:
        """Unscaled values, [1 or 3, h, w]: of more than `LOOKED_AT` pixels a grid of at most that many.

        It depends only on the size, so that every process finds the same percentiles.
        """
        height, width = self.size
        step = math.ceil(math.sqrt(height * width / LOOKED_AT))
        return self._channels(slice(0, height, step), slice(0, width, step))

    def _channels(self, rows: slice, columns: slice) -> NDArray[Any]:
        """[1 or 3, h, w] of the file's own dtype."""
        if self.axes == "YX":
            return np.asarray(self.array[rows, columns])[None]
        if self.axes == "CYX":
            found = np.asarray(self.array[:, rows, columns])
        else:
            found = np.asarray(self.array[rows, columns]).transpose(2, 0, 1)
        return found[:1] if len(found) == 2 else found[:3]


def _scaled(values: NDArray[Any], limits: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = (limit[:, None, None].astype(np.float32) for limit in limits)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    with np.errstate(over="ignore", invalid="ignore"):
        share = (values.astype(np.float32) - low) / span
    share = np.clip(np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    return np.rint(share * 255).astype(np.uint8)


def is_tiff(path: str | Path) -> bool:
    """Whether a file starts like TIFF or BigTIFF, whatever its name: GeoTIFF and whole slides do too.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(4) in _TIFF_BEGINS


def open_tiff(path: str | Path) -> Windows:
    """A TIFF's first image, at full size if it is a pyramid; its pixels are not read yet.

    Uncompressed ones are mapped into memory; of others the strips or tiles that a window touches are decoded.

    Raises:
        MissingExtraError: the extra "tiff" is not installed.
        NotByWindowsError: stacks, palettes, other colours than grey and RGB, values that are no numbers.
        OSError, ValueError: a broken file.
    """
    with extra_needed(str(path)):
        import tifffile
        import zarr
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            page, axes, shape = series.keyframe, series.axes, series.shape
            if fault := _fault(page, axes, shape):
                raise NotByWindowsError(fault)
            mapped = page.is_memmappable and series.dataoffset is not None
            # Decoded as a whole, of 4 channels at most.
            if not mapped and math.prod(page.chunks) > 4 * limits.image_pixels:
                most = f"{limits.image_pixels} pixels ({PREFIX}IMAGE_PIXELS)"
                raise NotByWindowsError(
                    f"expected strips or tiles of at most {most}, got {list(page.chunks)}"
                )
            if not mapped:
                # With a cache of open files, zarr's cycles would keep the file of each image open, and reads
                # that are still under way when a tile is broken would open it again.
                store = file.aszarr(series=0, level=0, _openfiles=0)
        axes = axes.replace("S", "C")
        if mapped:
            return Windows(tifffile.memmap(path, series=0, level=0, mode="r"), axes)
        return Windows(zarr.open_array(store, mode="r"), axes)
    except (tifffile.TiffFileError, IndexError, KeyError, struct.error) as error:
        raise ValueError(str(error)) from error


def _fault(page: Any, axes: str, shape: tuple[int, ...]) -> str | None:
    if axes not in _LAYOUTS:
        return f"expected one picture in grey or RGB, got the axes {axes} of shape {list(shape)}"
    channels = 1 if axes == "YX" else shape[-1 if axes == "YXS" else 0]
    if channels > 4:
        return f"expected 1 to 4 channels, got {channels}"
    if page.photometric.name not in ("MINISBLACK", "RGB", "YCBCR"):
        return f"expected grey or RGB, got {page.photometric.name}"
    if page.bitspersample not in (8, 16, 32, 64):
        return f"expected 8, 16, 32 or 64 bits a channel, got {page.bitspersample}"
    if page.dtype is None or page.dtype.kind not in "uif":
        return f"expected integers or floats, got {page.dtype}"
    orientation = page.tags.valueof("Orientation", 1)
    return f"expected the orientation 1, got {orientation}" if orientation != 1 else None
