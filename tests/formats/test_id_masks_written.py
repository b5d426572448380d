"""Instances as a picture of ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from instances import found
from PIL import Image

from solo_attn.formats import to_id_map, write_id_map
from solo_attn.models.inference import boxes_of


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


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="to_id_map: expected prediction with the keys"):
        to_id_map({"masks": torch.zeros(0, 3, 3)})
