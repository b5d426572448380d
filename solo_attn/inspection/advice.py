"""Training settings with the grids that `inspect_dataset` proposes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from .dataset import Inspection
from .grids import GridSetting

Settings = Mapping[str, Mapping[str, Any]]
"""A training configuration's sections ``data``, ``model`` and ``train``, as from its ``as_dict()``."""


def grid_setting(settings: Settings) -> GridSetting:
    """The model's grid setting, at the size to which evaluation resizes images."""
    model = settings["model"]
    return GridSetting(
        tuple(model["num_grids"]),
        tuple((low, high) for low, high in model["scale_ranges"]),
        _last(model["min_size"]),
        model["max_size"],
    )


def with_proposal(settings: Settings, found: Inspection) -> dict[str, dict[str, Any]]:
    """A copy of ``settings`` with the proposal, and training images scaled by the same factor as the input.

    If the model resizes them, ``min_size`` is changed; otherwise ``shortest_size`` if it is set, or
    ``scale_jitter``. Crops are scaled with the images. The limits on instances are raised to the largest
    number of objects in an image, since objects beyond the limit cannot be found.
    """
    result = {section: copy.deepcopy(dict(values)) for section, values in settings.items()}
    data, model, train, proposal = result["data"], result["model"], result["train"], found.proposal
    model["num_grids"] = list(proposal.num_grids)
    model["scale_ranges"] = [list(pair) for pair in proposal.scale_ranges]
    factor = proposal.min_size / _last(model["min_size"])
    if factor != 1:
        if isinstance(model["min_size"], int):
            model["min_size"] = proposal.min_size
        else:
            model["min_size"] = [*_scaled(model["min_size"][:-1], factor), proposal.min_size]
        model["max_size"] = proposal.max_size
        grown = data["shortest_size"] is not None or not model["resize_in_training"]  # before the crop
        if data["shortest_size"] is not None:
            data["shortest_size"] = _scaled(data["shortest_size"], factor)
        elif grown:
            # Rounded, or the file would have 1.2000000000000002 for 0.8 times 1.5.
            data["scale_jitter"] = [round(factor * scale, 4) for scale in data["scale_jitter"] or [1.0, 1.0]]
        if grown and data["crop_size"] is not None:
            crop = data["crop_size"]
            data["crop_size"] = round(factor * crop) if isinstance(crop, int) else _scaled(crop, factor)
    fullest = int(found.per_image[-1])
    if fullest > model["max_detections"]:
        model["max_detections"] = fullest
        model["nms_pre"] = max(model["nms_pre"], 2 * fullest)
    train["eval_max_detections"] = max(train["eval_max_detections"], fullest)
    return result


def _last(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[-1]


def _scaled(sizes: Sequence[int], factor: float) -> list[int]:
    return [round(factor * size) for size in sizes]
