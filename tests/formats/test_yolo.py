"""YOLO's segmentation labels, against what Ultralytics reads of the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from benchmarks.peers.loading import need
from solo_attn.data import CocoInstances, DatasetError
from solo_attn.formats import convert_yolo

HEIGHT, WIDTH = 40, 60
LABELS = (
    "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n0 0.6 0.25 1.005 0.25 0.9 0.75\n\n1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("images/train/a.png", "images/train/b.png", "images/val/c.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    for name in ("labels/train/a.txt", "labels/val/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LABELS)
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: ../val.txt\nnames: {0: leaf, 1: stem}\n")
    (tmp_path / "val.txt").write_text("./images/val/c.png\n")
    return file


def test_what_ultralytics_reads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    need("ultralytics")
    from ultralytics.data.utils import polygon2mask, verify_image_label

    out = tmp_path / "train.json"
    summary = convert_yolo(data, out)
    assert (summary.images, summary.images_without_objects, summary.annotations) == (2, 1, 2)
    coco = COCO(str(out))
    assert [one["name"] for one in coco.cats.values()] == ["leaf", "stem"]
    image, label = (str(tmp_path / name) for name in ("images/train/a.png", "labels/train/a.txt"))
    found = verify_image_label((image, label, "", False, 2, 0, 0, False))
    theirs = {int(row[0]): segment for row, segment in zip(found[1], found[3], strict=True)}
    mine = {one["category_id"] - 1: coco.annToMask(one) for one in coco.imgToAnns[1]}
    assert mine.keys() == theirs.keys() == {0, 1}
    for label_id, segment in theirs.items():
        corners = (segment.clip(0, 1) * (WIDTH, HEIGHT)).reshape(1, -1)
        other = polygon2mask((HEIGHT, WIDTH), corners)
        # OpenCV draws the outline as well.
        assert (mine[label_id] <= other).all()
        assert other.sum() - mine[label_id].sum() <= 2 * (HEIGHT + WIDTH) / 2
    assert mine[1].sum() == 24 * 16
    assert [one["file_name"] for one in coco.imgs.values()] == ["images/train/a.png", "images/train/b.png"]
    assert len(CocoInstances(tmp_path, out)) == 2


def test_other_ways_to_name_images(data: Path, tmp_path: Path) -> None:
    """A text file of paths, which Roboflow's "../" leads to as well."""
    assert convert_yolo(data, tmp_path / "val.json", split="val").annotations == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.1 0.1", "got a box, which has no mask"),
        ("0 0.5 0.5 0.1 0.1 x 0.3", "expected class x1 y1"),
        ("0 0.5 0.5 0.1 0.1 0.3", "expected class x1 y1"),
        ("2 0.1 0.1 0.5 0.1 0.5 0.5", "expected a class of 0..1, got 2"),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", "expected a class of 0..1, got 0.5"),
        ("0 10 10 50 10 50 50", "relative to the image's sides, in 0..1, got 10..50"),
        ("0 0.1 0.1 nan 0.1 0.5 0.5", "expected class x1 y1"),
        ("0 1 0 1 0.5 1 0.7", "expected a polygon with a pixel"),
    ],
)
def test_rows_that_are_none(data: Path, tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "labels/train/a.txt").write_text(row)
    with pytest.raises(DatasetError, match=message):
        convert_yolo(data, tmp_path / "train.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, a]\ntrain: images/train", "expected names to be different"),
        ("names: {1: a}\ntrain: images/train", "numbered from 0"),
        ("train: images/train", "expected YOLO's names"),
        ("names: [a]", "expected train to be a folder"),
        ("names: [a]\ntrain: nowhere", "expected a folder or a text file"),
        ("names: [a]\ntrain: labels", "expected images in train, got none"),
        ("names: [", "expected YAML"),
        ("names: [a]\ntrain: alone", r"expected labels such as .*alone/a\.txt, found none"),
    ],
)
def test_files_that_are_none(data: Path, tmp_path: Path, text: str, message: str) -> None:
    data.write_text(text)
    (tmp_path / "alone").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "alone" / "a.png")
    with pytest.raises(DatasetError, match=message):
        convert_yolo(data, tmp_path / "train.json")
