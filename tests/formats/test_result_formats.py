"""Instances as a picture of ids and as supervision's Detections."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.peers.loading import need
from solo_attn.formats.id_map import to_id_map, write_id_map
from solo_attn.interop.supervision import to_detections
from solo_attn.models.inference import boxes_of

NAMES = ["person", "rider", "car"]


def found(count: int = 5, seed: int = 0, size: tuple[int, int] = (40, 50)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, side - 15, (), generator=generator)) for side in size)
        mask[y : y + 15, x : x + 12] = True
    return {
        "boxes": boxes_of(masks),
        "labels": torch.randint(0, len(NAMES), (count,), generator=generator),
        "scores": torch.rand(count, generator=generator).sort(descending=True).values,
        "masks": masks,
    }


def test_the_best_instance_lies_on_top(tmp_path) -> None:
    instances = found()
    # In any order: ids are places, scores decide.
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {key: x[order] for key, x in instances.items()}
    write_id_map(tmp_path / "ids.png", shuffled)
    with Image.open(tmp_path / "ids.png") as picture:
        assert picture.format == "PNG"
        assert picture.mode == "I;16"
        ids = np.asarray(picture)
    assert np.array_equal(ids, to_id_map(shuffled))
    for y in range(40):
        for x in range(50):
            there = [k for k in range(5) if shuffled["masks"][k, y, x]]
            best = max(there, key=lambda k: float(shuffled["scores"][k]), default=-1)
            assert ids[y, x] == best + 1
    assert len(np.unique(ids)) > 3


def test_equal_scores_limits_and_thresholds() -> None:
    instances = found(2)
    instances["masks"][:] = True
    instances["scores"][:] = 0.5
    assert np.unique(to_id_map(instances)).tolist() == [1]
    assert np.unique(to_id_map(instances, score_threshold=0.6)).tolist() == [0]
    assert to_id_map({key: x[:0] for key, x in instances.items()}).shape == (40, 50)
    many = found(1, size=(16, 16))
    many = {key: x.expand(2**16, *x.shape[1:]) for key, x in many.items()}
    with pytest.raises(
        ValueError, match="to_id_map: expected prediction of at most 65535 instances, got 65536"
    ):
        to_id_map(many)
    many = {key: x[1:].clone() for key, x in many.items()}
    many["scores"] = torch.linspace(0, 1, len(many["scores"]))
    assert to_id_map(many).max() == 65535


def test_more_ids_than_a_byte_holds(tmp_path) -> None:
    count = 700
    masks = torch.eye(count, dtype=torch.bool).reshape(count, 20, 35)
    instances = {
        "boxes": boxes_of(masks),
        "labels": torch.zeros(count, dtype=torch.int64),
        "scores": torch.linspace(1, 0, count),
        "masks": masks,
    }
    write_id_map(tmp_path / "ids.png", instances)
    with Image.open(tmp_path / "ids.png") as picture:
        assert np.asarray(picture).ravel().tolist() == list(range(1, count + 1))


def test_detections_are_supervisions_own() -> None:
    supervision = need("supervision")
    instances = found()
    detections = to_detections(instances, NAMES)
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == 5
    assert np.array_equal(detections.xyxy, instances["boxes"].numpy())
    assert np.array_equal(detections.mask, instances["masks"].numpy())
    assert np.array_equal(detections.area, instances["masks"].sum((1, 2)).numpy())
    # Its boxes end with the last pixel, ours behind it.
    inclusive = detections.xyxy - np.array([0, 0, 1, 1])
    assert np.array_equal(supervision.mask_to_xyxy(detections.mask), inclusive)
    assert detections["class_name"].tolist() == [NAMES[k] for k in instances["labels"].tolist()]
    confident = detections[detections.confidence > 0.5]
    assert 0 < len(confident) < 5
    scene = np.zeros((40, 50, 3), dtype=np.uint8)
    painted = supervision.MaskAnnotator().annotate(scene.copy(), confident)
    assert np.array_equal(painted.any(2), confident.mask.any(0))
    labels = supervision.LabelAnnotator().annotate(scene.copy(), confident)
    assert labels.any()


def test_no_detections() -> None:
    need("supervision")
    nothing = to_detections({key: x[:0] for key, x in found().items()}, NAMES)
    assert len(nothing) == 0
    assert nothing.mask.shape == (0, 40, 50)


def test_what_is_wrong_is_named(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"to_detections: expected prediction\['labels'\] in 0\.\.0"):
        to_detections(found(), ["person"])
    with pytest.raises(ValueError, match="to_id_map: expected prediction with the keys"):
        to_id_map({"masks": torch.zeros(0, 3, 3)})
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_detections(found(), NAMES)
