"""A proposal's configuration shows training objects as large as its ranges take them to be."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from solo_attn.data import train_transforms
from solo_attn.inspection import grid_setting, with_proposal
from solo_attn.inspection.grids import GridSetting
from solo_attn.models import build_solo
from solo_attn.training import Config

SIDE = 100  # of an image, of which the object takes the middle
FACTOR = 2


def proposed(config: Config, factor: float = FACTOR) -> Config:
    """The configuration with ``factor`` times the input."""
    before = grid_setting(config.as_dict())
    ranges = tuple((low * factor, high * factor) for low, high in before.scale_ranges)
    proposal = GridSetting(
        before.num_grids, ranges, round(before.min_size * factor), round(before.max_size * factor)
    )
    found: Any = SimpleNamespace(proposal=proposal, per_image=[1.0])
    return Config.from_dict(with_proposal(config.as_dict(), found))


def side_in_training(config: Config) -> float:
    """Of the object as the model's levels see it."""
    data, model = config.data, config.model
    image = tv_tensors.Image(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8))
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    masks[:, 30:70, 30:70] = 1
    target = {
        "boxes": tv_tensors.BoundingBoxes([[30, 30, 70, 70]], format="XYXY", canvas_size=(SIDE, SIDE)),
        "labels": torch.zeros(1, dtype=torch.int64),
        "masks": tv_tensors.Mask(masks),
    }
    jitter: Any = data.scale_jitter
    crop: Any = data.crop_size
    varied = train_transforms(
        shortest_size=data.shortest_size, scale_jitter=jitter, crop_size=crop, flip=0.0
    )(image, target)
    small = {"backbone": "resnet18", "fpn_channels": 32, "head_channels": 32, "num_convs": 1}
    solo = build_solo(
        1,
        norm="gn",
        min_size=model.min_size,
        max_size=model.max_size,
        resize_in_training=model.resize_in_training,
        **small,  # type: ignore[arg-type]
    )
    _, (resized,) = solo.transform([varied[0]], [varied[1]])
    box = resized["boxes"][0]
    return float((box[2:] - box[:2]).prod().sqrt())


@pytest.mark.parametrize("resize_in_training", [False, True])
def test_training_objects_grow_with_the_ranges(resize_in_training: bool) -> None:
    settings = itertools.product([None, [80]], [None, [0.8, 0.8]], [None, 120, [120, 130]])
    for shortest_size, scale_jitter, crop_size in settings:
        data = {"shortest_size": shortest_size, "scale_jitter": scale_jitter, "crop_size": crop_size}
        model = {"resize_in_training": resize_in_training, "min_size": 64, "max_size": 200}
        config = Config.from_dict({"data": data, "model": model})
        grown = side_in_training(proposed(config)) / side_in_training(config)
        assert grown == pytest.approx(FACTOR, rel=0.05), data


@pytest.mark.parametrize(
    ("data", "resize_in_training", "expected"),
    [
        ({"scale_jitter": [0.8, 1.2]}, False, [1.2, 1.8]),
        ({}, False, [1.5, 1.5]),
        ({"scale_jitter": [0.8, 1.2]}, True, [0.8, 1.2]),
        ({}, True, None),
        ({"scale_jitter": [0.8, 1.2], "shortest_size": [64]}, False, [0.8, 1.2]),
        ({"shortest_size": [64]}, False, None),
    ],
)
def test_scale_jitter_changes_where_nothing_else_makes_images_larger(
    data: dict[str, Any], resize_in_training: bool, expected: list[float] | None
) -> None:
    config = Config.from_dict({"data": data, "model": {"resize_in_training": resize_in_training}})
    jitter = proposed(config, 1.5).data.scale_jitter
    assert (None if jitter is None else list(jitter)) == expected
    assert proposed(config, 1).data == config.data
