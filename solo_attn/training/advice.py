"""A configuration with the grids that `solo_attn.evaluation.inspection` proposes."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.grids import GridSetting
from ..evaluation.inspection import Inspection
from .config import Config


def grid_setting(config: Config) -> GridSetting:
    """The model's setting, at the size that evaluation resizes images to."""
    model = config.model
    return GridSetting(
        tuple(model.num_grids),
        tuple((low, high) for low, high in model.scale_ranges),
        _last(model.min_size),
        model.max_size,
    )


def with_proposal(config: Config, found: Inspection) -> Config:
    """A copy of ``config`` with the proposal, training sizes scaled with the input.

    The limits on instances are raised to the fullest image's, since an image can have no more AP than it may
    have instances.
    """
    result = Config.from_dict(config.as_dict())
    data, model, train, proposal = result.data, result.model, result.train, found.proposal
    model.num_grids = list(proposal.num_grids)
    model.scale_ranges = [list(pair) for pair in proposal.scale_ranges]
    factor = proposal.min_size / _last(model.min_size)
    if factor != 1:
        if isinstance(model.min_size, int):
            model.min_size = proposal.min_size
        else:
            model.min_size = [*_scaled(model.min_size[:-1], factor), proposal.min_size]
        model.max_size = proposal.max_size
        if data.shortest_size is not None:
            data.shortest_size = _scaled(data.shortest_size, factor)
        if isinstance(data.crop_size, int):
            data.crop_size = round(factor * data.crop_size)
        elif data.crop_size is not None:
            data.crop_size = _scaled(data.crop_size, factor)
    fullest = int(found.per_image[-1])
    if fullest > model.max_detections:
        model.max_detections = fullest
        model.nms_pre = max(model.nms_pre, 2 * fullest)
    train.eval_max_detections = max(train.eval_max_detections, fullest)
    return result


def _last(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[-1]


def _scaled(sizes: Sequence[int], factor: float) -> list[int]:
    return [round(factor * size) for size in sizes]
