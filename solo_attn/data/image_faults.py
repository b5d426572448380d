"""Why an image file cannot be the annotated one, found from its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._utils.readers import one_line
from .images import UNREADABLE, ImageError, Percentiles, image_size, read_image
from .pictures import annotated_fault, open_picture, warn_of_frames


def file_fault(path: Path, entry: dict[str, Any], decode: bool, percentiles: Percentiles) -> str | None:
    """Why a file does not match its entry in COCO's ``images``, or None.

    Args:
        path: of the file.
        entry: with its annotated height and width.
        decode: also decode the pixels.
        percentiles: see `Percentiles`.
    """
    wanted = (entry["height"], entry["width"])
    try:
        if not path.is_file():
            return "no such file"
        if path.stat().st_size == 0:
            return "the file is empty"
        width, height = image_size(path, percentiles)
        if decode:
            read_image(path, exif=False, percentiles=percentiles)
    except ImageError as error:
        return error.reason
    except (OSError, ValueError) as error:
        return f"cannot be read as an image: {one_line(error)}"
    try:
        with open_picture(path) as image:  # reads the header only
            warn_of_frames(path, image)
            return annotated_fault(image, wanted)
    except UNREADABLE:  # deep and large TIFFs are read by other means, and have no orientation there
        if (height, width) == wanted:
            return None
        return f"expected {wanted[1]} x {wanted[0]} pixels as annotated, got {width} x {height}"
