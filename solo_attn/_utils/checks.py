"""What the functions of this folder ask of their arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ..ops._checks import check_tensor, fail
from . import files as _files

Prediction = Mapping[str, Tensor]
"""Instances of one image: ``boxes`` float32 [N, 4] xyxy in pixels, ``labels`` int64 [N] in 0..C-1, ``scores``
float32 [N] and ``masks`` bool [N, H, W] at the image's original size. Ground truth has no scores."""

_SHAPES = {"boxes": "[N, 4]", "labels": "[N]", "scores": "[N]", "masks": "[N, H, W]"}


def check_prediction(function: str, prediction: Prediction, classes: int, *, scores: bool = True) -> None:
    """Refuse tensors that are missing, of other shapes or of unequal N, and labels outside 0..classes-1."""
    keys = [key for key in _SHAPES if key != "scores" or scores]
    missing = [key for key in keys if key not in prediction]
    if missing:
        fail(function, "prediction", f"with the keys {keys}", f"no {missing} among {sorted(prediction)}")
    for key in keys:
        check_tensor(function, f"prediction[{key!r}]", prediction[key], _SHAPES[key])
    count = len(prediction["labels"])
    for key in keys:
        if len(prediction[key]) != count:
            fail(function, f"prediction[{key!r}]", f"of N = {count} as labels has", str(len(prediction[key])))
    if prediction["boxes"].shape[1] != 4:
        fail(function, "prediction['boxes']", "of shape [N, 4]", str(list(prediction["boxes"].shape)))
    outside = [label for label in prediction["labels"].tolist() if not 0 <= label < classes]
    if outside:
        fail(function, "prediction['labels']", f"in 0..{classes - 1}", str(outside[0]))


@contextmanager
def replacing(function: str, path: str | Path) -> Iterator[Path]:
    """`solo_attn._utils.files.replacing` with this library's message.

    Raises:
        OSError: nothing can be written there; the message names the path.
    """
    try:
        with _files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{function}: expected path to be a file that can be written, got '{path}' ({reason})"
        raise OSError(error.errno, message) from error
