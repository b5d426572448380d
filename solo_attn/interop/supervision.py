"""Instances as ``supervision.Detections``, for its annotators, trackers, zones and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._utils.checks import Prediction, as_bool, check_prediction

if TYPE_CHECKING:
    from supervision import Detections


def to_detections(found: Prediction, class_names: Sequence[str]) -> Detections:
    """One image's instances as supervision takes them; needs ``pip install supervision``.

    Args:
        found: what the model returns for an image: ``boxes``, ``labels``, ``scores``, ``masks``.
        class_names: the name of each label.

    Returns:
        Detections with ``xyxy`` float32 [N, 4] (x2 = last column + 1), ``mask`` bool [N, H, W],
        ``confidence`` float32 [N], ``class_id`` int64 [N] (labels, from 0) and ``data["class_name"]``, in the
        order of ``found``.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, or a label has no name.
        ImportError: supervision is not installed.
    """
    check_prediction("to_detections", found, len(class_names))
    try:
        from supervision import Detections
    except ModuleNotFoundError as error:
        raise ImportError(
            f"to_detections: expected {error.name} to be installed; run: pip install supervision"
        ) from error
    labels = found["labels"].detach().cpu().numpy()
    return Detections(
        xyxy=found["boxes"].detach().cpu().float().numpy(),
        mask=as_bool(found["masks"].detach().cpu()).numpy(),
        confidence=found["scores"].detach().cpu().float().numpy(),
        class_id=labels,
        data={"class_name": np.array([str(class_names[label]) for label in labels], dtype=str)},
    )
