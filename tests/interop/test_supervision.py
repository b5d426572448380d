"""Instances as supervision's Detections."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from instances import NAMES, found

from benchmarks.peers.loading import need
from solo_attn.interop.supervision import to_detections


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
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_detections(found(), NAMES)
