"""Sizes and centres from run lengths, against the masks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from small_coco import real_data

from solo_attn.data import CocoInstances
from solo_attn.data.transforms import FitBoxes
from solo_attn.inspection.objects import _moments, _run_ends, measure_objects
from solo_attn.models.targets import find_objects

if TYPE_CHECKING:
    from small_coco import CocoSet


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_moments(height: int, width: int, seed: int, filled: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < filled
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    ys, xs = np.nonzero(mask)
    assert _moments(encoded["counts"], height) == (len(ys), ys.sum(), xs.sum())


def test_long_runs() -> None:
    """Numbers of several characters, the differences negative."""
    mask = np.zeros((1000, 900), dtype=np.uint8, order="F")
    mask[:, 100:800] = 1
    mask[3, 850] = 1
    encoded = coco_mask.encode(mask)
    assert _run_ends(encoded["counts"]).tolist() == [100_000, 800_000, 850_003, 850_004, 900_000]
    assert _moments(encoded["counts"], 1000)[0] == mask.sum()


def as_training_sees_them(dataset: CocoInstances, index: int) -> tuple[torch.Tensor, ...]:
    """Side, centre and half sizes, from masks."""
    image, target = dataset[index]
    _, target = FitBoxes()(image, target)
    found = find_objects({k: v.as_subclass(torch.Tensor) for k, v in target.items()})
    return found.labels, found.side, found.centre, found.half * 10


def compare(dataset: CocoInstances, indices: list[int]) -> int:
    table = measure_objects(dataset)
    assert table.per_image.sum() == len(table.area)
    for index in indices:
        own = table.image == index
        labels, side, centre, extent = as_training_sees_them(dataset, index)
        assert labels.tolist() == table.label[own].tolist()
        assert torch.allclose(torch.from_numpy(table.extent[own]).float(), extent)  # 10 x 0.1 x extent
        assert torch.equal(torch.from_numpy(table.centre[own]).float(), centre)
        assert torch.equal(torch.from_numpy(table.extent[own]).float().prod(1).sqrt(), side)
    return len(table.area)


def test_polygons_runs_and_crowds(coco_set: CocoSet) -> None:
    dataset = CocoInstances(*coco_set.write())
    assert compare(dataset, [0, 1]) == 3  # the crowd is none
    assert measure_objects(dataset).per_image.tolist() == [0, 3]


def test_no_object(coco_set: CocoSet) -> None:
    coco_set.content["annotations"] = []
    table = measure_objects(CocoInstances(*coco_set.write()))
    assert table.area.shape == (0,)
    assert table.centre.shape == (0, 2)
    assert table.per_image.tolist() == [0, 0]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "images", "annotations"),
    [
        ("dsb2018", "images_train", "instances_paper_val50"),
        ("coco_open", "images", "instances_train"),
    ],
)
def test_real_objects(name: str, images: str, annotations: str) -> None:
    data: Path = real_data(name)
    dataset = CocoInstances(data / images, data / f"{annotations}.json")
    compare(dataset, list(range(0, len(dataset), 4)))
