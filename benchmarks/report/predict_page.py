"""The generated parts of docs/predict.md: a large image's memory, an evaluation's time and memory."""

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


def evaluation() -> str:
    """Both ways, beside each other."""
    found = kept("evaluation")
    if found is None:
        return "How much time and memory it saves has not been measured yet."
    rle, plain = found["ways"]["rle"], found["ways"]["bool"]
    (height, width), count, settings = found["size"], found["images"], found["settings"]
    return (
        f"Measured: evaluating {count} images of {height:,} x {width:,} pixels with "
        f"{rle['instances'] / count:.0f} instances each took {rle['seconds']:.0f} seconds and at most "
        f"{rle['peak_gib']:.2f} GiB for the whole process. With bool masks that are encoded afterwards it "
        f"took {plain['seconds']:.0f} seconds and {plain['peak_gib']:.2f} GiB for the same results. Both "
        "loaded the images, ran the model (ResNet-18, "
        f"{settings['head_channels']} channels, images resized to "
        f"{found['input'][0]} x {found['input'][1]}, random weights) and computed COCO's numbers "
        f"{measured_on(found['environment'])}."
    )


BLOCKS: dict[str, Callable[[], str]] = {"large_image": large_image, "evaluation": evaluation}
