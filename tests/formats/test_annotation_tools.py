"""What annotation tools read of predictions: Label Studio's checks, CVAT's importer, QuPath's reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from small_coco import compressed

from benchmarks.peers.loading import need
from solo_attn.data import CocoInstances
from solo_attn.formats import (
    coco_annotations,
    coco_results,
    label_studio_config,
    local_file,
    to_geojson,
    to_label_studio,
    write_dataset,
    write_label_studio,
)
from solo_attn.formats.label_studio import brush

NAMES = ["cell & nucleus", "debris"]
SIZE = (20, 30)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """A ring with a hole, two parts, and one that touches all borders."""
    found = np.zeros((3, *SIZE), dtype=np.uint8)
    found[0, 3:12, 5:20] = 1
    found[0, 6:9, 9:13] = 0
    found[1, 0, 0] = found[1, 10:19, 25:30] = 1
    found[2] = 1
    return found


@pytest.fixture(scope="module", params=["bool", "runs"])
def found(masks: np.ndarray, request: pytest.FixtureRequest) -> dict[str, Any]:
    boxes = torch.tensor([[5, 3, 20, 12], [0, 0, 30, 19], [0, 0, 30, 20]], dtype=torch.float32)
    return {
        "boxes": boxes,
        "labels": torch.tensor([0, 1, 0]),
        "scores": torch.tensor([0.9, 0.5, 0.1]),
        "masks": torch.from_numpy(masks).bool() if request.param == "bool" else [*map(compressed, masks)],
    }


def test_label_studio(found: dict[str, Any], masks: np.ndarray, tmp_path: Path) -> None:
    need("label_studio_sdk")
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    image = local_file("a folder/ä.png")
    assert image == "/data/local-files/?d=a%20folder/%C3%A4.png"
    task = to_label_studio(found, NAMES, SIZE, image, score_threshold=0.5)
    write_label_studio(tmp_path / "tasks.json", [task], NAMES)
    (read,) = json.loads((tmp_path / "tasks.json").read_text())
    interface = LabelInterface((tmp_path / "tasks.xml").read_text())
    assert interface.validate_prediction(read["predictions"][0], return_errors=True) == []
    assert interface.validate_task({"data": read["data"]})
    spoilt = json.loads(json.dumps(read["predictions"][0]).replace("debris", "dust"))
    assert interface.validate_prediction(spoilt, return_errors=True), "a class that is none is seen"
    assert read["predictions"][0]["score"] == 0.5
    regions = read["predictions"][0]["result"]
    assert [region["value"]["brushlabels"] for region in regions] == [[NAMES[0]], [NAMES[1]]]
    for region, mask in zip(regions, masks, strict=False):
        values = decode_rle(region["value"]["rle"]).reshape(*SIZE, 4)
        assert (values == 255 * mask[:, :, None]).all()
    with pytest.raises(ValueError, match="to_label_studio: expected masks of the image's size"):
        to_label_studio(found, NAMES, (30, 20), image)


def test_long_and_empty_strokes() -> None:
    need("label_studio_sdk")
    from label_studio_sdk.converter.brush import decode_rle

    size = (300, 500)
    for top, left, part in [(0, 0, np.zeros((0, 0), bool)), (120, 7, np.ones((180, 493), bool))]:
        mask = np.zeros(size, dtype=np.uint8)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert (decode_rle(brush(part, top, left, size)).reshape(*size, 4)[:, :, 3] == 255 * mask).all()


def test_the_interface_quotes_names() -> None:
    assert '<Label value="cell &amp; nucleus" background="#e63939"/>' in label_studio_config(NAMES)


def test_a_dataset_that_cvat_imports(found: dict[str, Any], masks: np.ndarray, tmp_path: Path) -> None:
    """CVAT reads COCO by datumaro."""
    need("datumaro")
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    (tmp_path / "annotations").mkdir()
    (tmp_path / "images" / "default").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "default" / name)
    images = [
        {"id": k, "file_name": name, "height": 20, "width": 30} for k, name in ((1, "a.png"), (2, "b.png"))
    ]
    categories = [{"id": k, "name": name} for k, name in zip((7, 3), NAMES, strict=True)]
    results = coco_results(1, found, [7, 3])
    out = tmp_path / "annotations" / "instances_default.json"
    write_dataset(out, images, coco_annotations(results, 0.5), categories)
    mine = CocoInstances(tmp_path / "images" / "default", out)
    assert (len(mine), len(mine[0][1]["masks"])) == (2, 2)
    theirs = Dataset.import_from(str(tmp_path), "coco_instances")
    labels = theirs.categories()[AnnotationType.label]
    items = {item.id: item for item in theirs}
    assert items.keys() == {"a", "b"}
    assert not items["b"].annotations
    drawn = [one for one in items["a"].annotations if one.type == AnnotationType.mask]
    read = {labels[one.label].name: one.image.astype(bool) for one in drawn}
    assert len(drawn) == len(read) == 2
    for name, mask in zip(NAMES, masks, strict=False):
        assert (read[name] == mask.astype(bool)).all()


def test_what_qupath_reads(found: dict[str, Any], masks: np.ndarray) -> None:
    need("qubalab")
    import geojson
    from qubalab.objects.image_feature import ImageFeature

    read = geojson.loads(json.dumps(to_geojson(found, NAMES)))
    assert read.is_valid, read.errors()
    for feature, name, score in zip(
        read["features"], (NAMES[0], NAMES[1], NAMES[0]), (0.9, 0.5, 0.1), strict=True
    ):
        theirs = ImageFeature.create_from_feature(feature)
        assert theirs.is_detection
        assert theirs.classification.names == (name,)
        assert theirs.measurements["score"] == pytest.approx(score)
    colours = [feature["properties"]["classification"]["color"] for feature in read["features"]]
    assert colours[0] == colours[2] != colours[1]
    assert coco_mask.area(compressed(masks[0])) == 123
