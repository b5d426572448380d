"""The generated part of docs/predict.md: the memory of a large image's prediction."""

from __future__ import annotations

from collections.abc import Callable

from .stored import kept, measured_on


def large_image() -> str:
    """In a sentence."""
    found = kept("large_image")
    if found is None:
        return "How much memory 10,000 x 10,000 pixels take has not been measured yet."
    height, width = found["size"]
    settings = found["settings"]
    where = measured_on(found["environment"])
    return (
        f"Measured: a TIFF of {width:,} x {height:,} pixels by `--tile {settings['tile']} "
        f"--overlap {settings['tile_overlap']}`, {found['instances']:,} instances of a small model "
        f"(ResNet-18, tiles resized to {found['input']} pixels, at most {settings['max_detections']} "
        f"instances a tile): at most {found['peak_gib']:.2f} GiB "
        f"for the whole process, {found['before_gib']:.2f} of them before the model was loaded {where}."
    )


BLOCKS: dict[str, Callable[[], str]] = {"large_image": large_image}
