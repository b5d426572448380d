"""Instances as one picture of ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._utils.checks import Prediction, check_prediction, replacing
from ..ops._checks import fail

MOST = 2**16 - 1


def to_id_map(found: Prediction, *, score_threshold: float = 0.0) -> NDArray[np.uint16]:
    """Which instance each pixel belongs to: uint16 [H, W], 0 for none.

    An instance's id is its place in ``found``, from 1. Where masks overlap the higher score wins; of equal
    scores the earlier. An instance that lies under others wholly leaves no pixel, and its id is not there.

    Args:
        found: what the model returns for an image: ``boxes``, ``labels``, ``scores``, ``masks``.
        score_threshold: scores from which instances are drawn, inclusive.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, or there are more than 65,535.
    """
    labels = found["labels"].tolist() if "labels" in found else []
    check_prediction("to_id_map", found, max(labels, default=0) + 1)
    scores = found["scores"].detach().cpu()
    masks = found["masks"].detach().cpu().ne(0).numpy()
    if len(masks) > MOST:
        fail("to_id_map", "prediction", f"of at most {MOST} instances", str(len(masks)))
    ids = np.zeros(masks.shape[1:], dtype=np.uint16)
    for k in reversed(scores.argsort(descending=True, stable=True).tolist()):  # the best one last, on top
        if scores[k] >= score_threshold:
            ids[masks[k]] = k + 1
    return ids


def write_id_map(path: str | Path, found: Prediction, *, score_threshold: float = 0.0) -> None:
    """Write `to_id_map` as a 16-bit grey PNG, which is either left as it was or complete.

    Raises:
        TypeError, ValueError: see `to_id_map`.
        OSError: ``path`` cannot be written.
    """
    ids = to_id_map(found, score_threshold=score_threshold)
    with replacing("write_id_map", path) as temporary:
        Image.fromarray(ids).save(temporary, format="PNG")
