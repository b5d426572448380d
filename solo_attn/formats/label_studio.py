"""Label Studio: instances as the predictions of tasks, which annotators then correct.

Masks are brush strokes, which keep every pixel, holes and parts; Label Studio's polygons have neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._utils.checks import Prediction, as_bool, check_prediction, fail
from .._utils.files import replacing, write_lists
from .._utils.run_lengths import decode_window
from .geojson import class_colour

FROM, TO = "label", "image"  # the names of the tags in `label_studio_config`
LOCAL = "/data/local-files/?d="  # files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
_SIZES = (3, 6, 11, 16)  # bits that the length of a run may have
_CHANNELS = 4  # a stroke is a picture of red, green, blue and opacity


def to_label_studio(
    found: Prediction,
    class_names: Sequence[str],
    size: tuple[int, int],
    image: str,
    *,
    score_threshold: float = 0.0,
    model_version: str = "solo-attn",
) -> dict[str, Any]:
    """A task with one image's instances as its prediction, ready for `json`.

    Source: https://labelstud.io/guide/predictions, and https://labelstud.io/tags/brushlabels for the masks.

    Args:
        found: what the model returns for an image: ``boxes``, ``labels``, ``scores``, ``masks``, as bool or
            run lengths.
        class_names: the name of each label.
        size: (height, width) of the image.
        image: where Label Studio finds the image: a URL, or `local_file`.
        score_threshold: scores from which instances are written, inclusive.
        model_version: whose prediction it is; Label Studio shows it.

    Returns:
        ``data`` and ``predictions``: one, with a region ``brushlabels`` for each instance, best first. Its
        ``score`` is the lowest of the regions', so that tasks can be sorted by it; without a region it is 0.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, a label has no name, or masks are not
            of ``size``.
    """
    check_prediction("to_label_studio", found, len(class_names), rle=True)
    scores, labels, masks = found["scores"].tolist(), found["labels"].tolist(), found["masks"]
    if isinstance(masks, Tensor):
        masks = as_bool(masks.detach().cpu()).numpy()
    regions = []
    for k, score in enumerate(scores):
        if score < score_threshold:
            continue
        part, top, left, own = _window(masks[k])
        if own != tuple(size):
            fail("to_label_studio", "masks", f"of the image's size {list(size)}", str(list(own)))
        regions.append(
            {
                "id": f"instance-{k + 1}",
                "type": "brushlabels",
                "from_name": FROM,
                "to_name": TO,
                "original_width": size[1],
                "original_height": size[0],
                "image_rotation": 0,
                "score": score,
                "value": {
                    "format": "rle",
                    "rle": brush(part, top, left, size),
                    "brushlabels": [str(class_names[labels[k]])],
                },
            }
        )
    least = min((float(region["score"]) for region in regions), default=0.0)
    prediction = {"model_version": model_version, "score": least, "result": regions}
    return {"data": {TO: image}, "predictions": [prediction]}


def local_file(file_name: str) -> str:
    """How Label Studio names a file below its document root, which it serves itself."""
    return LOCAL + quote(file_name)


def label_studio_config(class_names: Sequence[str]) -> str:
    """The labelling interface that the tasks of `to_label_studio` are for, to be pasted into the settings."""
    labels = "\n".join(
        f'    <Label value={quoteattr(str(name))} background="#{bytes(class_colour(k)).hex()}"/>'
        for k, name in enumerate(class_names)
    )
    return (
        f'<View>\n  <Image name="{TO}" value="${TO}" zoom="true"/>\n'
        f'  <BrushLabels name="{FROM}" toName="{TO}">\n{labels}\n  </BrushLabels>\n</View>\n'
    )


def write_label_studio(
    path: str | Path, tasks: Iterable[Mapping[str, Any]], class_names: Sequence[str]
) -> None:
    """Write tasks as JSON and, beside them with the suffix .xml, `label_studio_config`.

    Raises:
        OSError: ``path`` cannot be written.
    """
    write_lists(path, tasks, "write_label_studio")
    with replacing(Path(path).with_suffix(".xml"), "write_label_studio") as temporary:
        temporary.write_text(label_studio_config(class_names), encoding="utf-8")


def _window(mask: Any) -> tuple[NDArray[np.bool_], int, int, tuple[int, ...]]:
    if isinstance(mask, np.ndarray):
        return mask, 0, 0, mask.shape
    return (*decode_window(mask), tuple(int(side) for side in mask["size"]))


def brush(part: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> list[int]:
    """A mask [h, w] at a place of a picture [H, W] as the bytes of a brush stroke.

    The format is that of the package rle-pack (thi.ng/umbrella): 32 bits with the number of values, 5 with
    the bits of a value, four times 4 with the bits of a length, each less one; then runs: a 1, which of the
    four lengths, the run's length less one, its value. The values are those of all four channels, row by row.
    """
    height, width = size
    if height * width * _CHANNELS >= 1 << 32:
        most = (1 << 32) // _CHANNELS
        fail(
            "label_studio",
            "image",
            f"of fewer than {most:,} pixels, which is all that the format counts",
            f"{height} x {width}",
        )
    edges = np.diff(np.pad(part.astype(np.int8), ((0, 0), (1, 1))))
    row, first = np.nonzero(edges == 1)
    _, last = np.nonzero(edges == -1)
    begin = (top + row) * width + left
    bounds = np.stack([begin + first, begin + last], axis=1).flatten()
    runs = np.diff(bounds, prepend=0, append=height * width) * _CHANNELS
    bits = [f"{height * width * _CHANNELS:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for place, run in enumerate(runs.tolist()):
        value = "1" * 8 if place % 2 else "0" * 8
        while run > 0:
            length = min(run, 1 << _SIZES[-1])
            which = next(k for k, most in enumerate(_SIZES) if length <= 1 << most)
            bits.append(f"1{which:02b}{length - 1:0{_SIZES[which]}b}{value}")
            run -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
