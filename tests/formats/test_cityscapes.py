"""Against cityscapesscripts, the dataset's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import small_cityscapes
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from solo_attn.data import CocoInstances, DatasetError
from solo_attn.formats import PAPER_CLASSES, convert_cityscapes
from solo_attn.formats.cityscapes import _IDS, INSTANCE_CLASSES, SPLITS, instance_ids

SIZE = (small_cityscapes.HEIGHT, small_cityscapes.WIDTH)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cityscapes.write(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture
def scripts() -> Any:
    from benchmarks.peers.loading import need

    need("cityscapesscripts")
    return need("cityscapesscripts.preparation.json2instanceImg")


def polygon_files(root: Path) -> list[Path]:
    return sorted(root.glob("gtFine/*/*/*_polygons.json"))


def with_id_images(scripts: Any, root: Path, to: Path) -> Path:
    """The same dataset, with instanceIds.png that its own scripts drew instead of polygons."""
    small_cityscapes.write(to)
    for path in polygon_files(to):
        annotation = scripts.Annotation()
        annotation.fromJsonFile(str(path))
        # Their json2instanceImg saves 32 bits, which Pillow 13 cannot any more; Cityscapes' files have 16.
        ids = np.asarray(scripts.createInstanceImage(annotation, "ids")).astype(np.uint16)
        Image.fromarray(ids).save(str(path).replace("_polygons.json", "_instanceIds.png"))
        path.unlink()
    return to


def masks_of(path: Path) -> dict[tuple[str, int, int], list[np.ndarray]]:
    """(file name, category, iscrowd) -> masks, by pycocotools."""
    coco = COCO(str(path))
    found: dict[tuple[str, int, int], list[np.ndarray]] = {}
    for entry in coco.anns.values():
        name = coco.imgs[entry["image_id"]]["file_name"]
        key = (name, entry["category_id"], entry["iscrowd"])
        found.setdefault(key, []).append(coco.annToMask(entry))
    return found


def test_labels_are_those_of_the_scripts(scripts: Any) -> None:
    from benchmarks.peers.loading import need

    labels = need("cityscapesscripts.helpers.labels").labels
    assert {label.name: label.id for label in labels if label.id >= 0} == _IDS
    assert {label.name: label.id for label in labels if label.hasInstances} == INSTANCE_CLASSES
    assert [label.name for label in labels if label.id < 0] == ["license plate"]


def test_drawn_polygons_are_those_of_the_scripts(scripts: Any, root: Path) -> None:
    for path in polygon_files(root):
        annotation = scripts.Annotation()
        annotation.fromJsonFile(str(path))
        expected = np.asarray(scripts.createInstanceImage(annotation, "ids"))
        found = instance_ids(path, SIZE)
        assert len(np.unique(expected)) > 8
        assert np.array_equal(found, expected)


def test_every_visible_pixel_and_no_other(scripts: Any, root: Path, tmp_path: Path) -> None:
    convert_cityscapes(root, tmp_path)
    for split in SPLITS:
        found = masks_of(tmp_path / f"instances_{split}.json")
        seen = 0
        for path in sorted((root / "gtFine" / split).glob("*/*.json")):
            annotation = scripts.Annotation()
            annotation.fromJsonFile(str(path))
            ids = np.asarray(scripts.createInstanceImage(annotation, "ids"))
            name = f"{path.parent.name}/{path.name.replace('_gtFine_polygons.json', '_leftImg8bit.png')}"
            for class_name in PAPER_CLASSES:
                number = INSTANCE_CLASSES[class_name]
                expected = [ids == value for value in np.unique(ids[ids // 1000 == number])]
                masks = found.pop((name, number, 0), [])
                assert len(masks) == len(expected)
                assert all(np.array_equal(a, b) for a, b in zip(masks, expected, strict=True))
                groups = found.pop((name, number, 1), [])
                assert len(groups) == int((ids == number).any())
                assert all(np.array_equal(mask, ids == number) for mask in groups)
                seen += len(masks) + len(groups)
        assert not found
        assert seen > 10


def test_id_images_give_the_same(scripts: Any, root: Path, tmp_path: Path) -> None:
    other = with_id_images(scripts, root, tmp_path / "ids")
    for source, out in ((root, tmp_path / "a"), (other, tmp_path / "b")):
        convert_cityscapes(source, out, classes=list(INSTANCE_CLASSES))
    for split in SPLITS:
        first, second = ((tmp_path / k / f"instances_{split}.json").read_text() for k in "ab")
        assert first == second


def test_what_is_written(root: Path, tmp_path: Path) -> None:
    found = convert_cityscapes(root, tmp_path)
    assert [(k, v.images, v.categories) for k, v in found.items()] == [("train", 6, 5), ("val", 3, 5)]
    dataset = CocoInstances(root / "leftImg8bit" / "train", tmp_path / "instances_train.json")
    assert dataset.class_names == list(PAPER_CLASSES)
    assert dataset.category_ids == [24, 25, 26, 27, 28]
    assert dataset.summary.crowds > 0
    total = np.zeros(SIZE, dtype=int)
    for entry in dataset.coco.imgToAnns[1]:
        mask = dataset.coco.annToMask(entry)
        total += mask
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert entry["bbox"] == box
        assert entry["area"] == mask.sum()
    assert total.max() == 1  # nothing lies under another thing


def test_classes(root: Path, tmp_path: Path) -> None:
    convert_cityscapes(root, tmp_path, classes=["bicycle", "car"])
    content = json.loads((tmp_path / "instances_train.json").read_text())
    assert content["categories"] == [{"id": 26, "name": "car"}, {"id": 33, "name": "bicycle"}]
    assert {a["category_id"] for a in content["annotations"]} == {26, 33}
    for wrong in (["cat"], ["car", "car"], [], ["building"]):
        with pytest.raises(ValueError, match="expected classes"):
            convert_cityscapes(root, tmp_path, classes=wrong)


def names_of(path: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


def test_subset(root: Path, tmp_path: Path) -> None:
    drawn = {}
    for seed in (0, 1, 2):
        for count in (2, 4):
            convert_cityscapes(root, tmp_path, subset=(count, 1), seed=seed)
            drawn[seed, count] = names_of(tmp_path / "instances_train.json")
            assert len(names_of(tmp_path / "instances_val.json")) == 1
        assert set(drawn[seed, 2]) < set(drawn[seed, 4])
    assert len({tuple(names) for (_, count), names in drawn.items() if count == 2}) > 1
    everything = [f"{p.parent.name}/{p.name}" for p in root.glob("leftImg8bit/train/*/*.png")]
    everything.sort(key=lambda name: hashlib.sha256(f"1/{name}".encode()).hexdigest())
    assert drawn[1, 4] == sorted(everything[:4])
    with pytest.raises(DatasetError, match="at least 7 images to draw from, found 6"):
        convert_cityscapes(root, tmp_path, subset=(7, 1))
    with pytest.raises(ValueError, match="expected subset"):
        convert_cityscapes(root, tmp_path, subset=(0, 1))


def spoil(root: Path, change: Any) -> Path:
    path = polygon_files(root)[0]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def put(position: int, **values: Any) -> Any:
    return lambda content: content["objects"][position].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(4, label="elephant"), r"objects\[4\]: expected a label of Cityscapes, got 'elephant'"),
        (put(5, polygon=[[1, 2, 3]]), r"objects\[5\]: expected a label and a polygon"),
        (put(5, polygon=[[1, float("nan")], [3, 4]]), r"objects\[5\]: expected a label and a polygon"),
        (lambda c: c.update(imgWidth=3), r"expected imgHeight and imgWidth \(128, 256\)"),
        (lambda c: c.pop("objects"), "expected a list 'objects'"),
    ],
)
def test_faults_name_the_file(tmp_path: Path, change: Any, message: str) -> None:
    root = small_cityscapes.write(tmp_path / "set", 2, 1)
    path = spoil(root, change)
    with pytest.raises(DatasetError, match=message) as caught:
        convert_cityscapes(root, tmp_path / "out")
    assert str(path) in str(caught.value) or path.name in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    root = small_cityscapes.write(tmp_path / "set", 2, 1)
    with pytest.raises(DatasetError, match=r"leftImg8bit/train: expected Cityscapes' images"):
        convert_cityscapes(tmp_path, tmp_path / "out")
    path = root / "leftImg8bit" / "val" / "lindau" / "lindau_000000_000019_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DatasetError, match=f"{path.name}.*cannot be read as an image"):
        convert_cityscapes(root, tmp_path / "out")
    ids = root / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_instanceIds.png"
    small_cityscapes.write(tmp_path / "set", 2, 1)
    Image.new("RGB", (256, 128)).save(ids)
    with pytest.raises(DatasetError, match=f"{ids.name}: expected one channel of whole numbers"):
        convert_cityscapes(root, tmp_path / "out")
    ids.unlink()
    polygon_files(root)[-1].unlink()
    with pytest.raises(DatasetError, match="expected its objects in"):
        convert_cityscapes(root, tmp_path / "out")


def test_run_lengths_are_cocos(root: Path, tmp_path: Path) -> None:
    convert_cityscapes(root, tmp_path)
    for entry in json.loads((tmp_path / "instances_val.json").read_text())["annotations"]:
        assert coco_mask.area(entry["segmentation"]) == entry["area"] > 0
