"""The generated part of docs/heads.md: what a prediction by each head costs."""

from __future__ import annotations

from collections.abc import Callable

from . import stored
from .stored import measured_on, table


def costs() -> str:
    """Parameters, time and memory, beside the convolutions that all of them share."""
    found = stored.kept("heads")
    if not found:
        return "Not measured yet."
    rows = [
        [
            f"`{name}`" if "," not in name else f"`{name.split(',')[0]}`, attention",
            " x ".join(map(str, row["size"])),
            f"{row['head_parameters'] / 1e6:.1f}",
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['seconds']['median']:.2f}",
            "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}",
        ]
        for name, row in found["rows"].items()
    ]
    columns = ["head", "image", "parameters of the head, millions", "of the model", "seconds", "MiB"]
    return (
        f"{table(columns, rows, words=2)}\n\n"
        f"A prediction of one image by a ResNet-50 with random weights, {found['candidates']} candidates for "
        "every head, 80 classes, masks as COCO run lengths. Image: the size that the head was published for. "
        "MiB: peak beyond weights and image. Medians of runs that take turns. "
        f"{measured_on(found['environment'])}"
    )


BLOCKS: dict[str, Callable[[], str]] = {"costs": costs}
