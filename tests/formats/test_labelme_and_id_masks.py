"""One PNG of ids an image, and labelme's files, against labelme."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

from PIL import Image
from pycocotools.coco import COCO

from solo_attn.data import CocoInstances, DatasetError
from solo_attn.formats import convert_id_masks, convert_labelme
from solo_attn.formats.labelme import shape_mask

HEIGHT, WIDTH = 40, 60
SIZE = (HEIGHT, WIDTH)


def save_image(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path, **options)
    return path


def ids(*values: int) -> np.ndarray:
    """Blocks of each value, the background between them."""
    result = np.zeros(SIZE, dtype=np.int32)
    for k, value in enumerate(values):
        result[5 + k : 30, 8 * k + 2 : 8 * k + 8] = value
    return result


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Images a.jpg (ids 1, 2 and 7, 8 bits), b.png (1,000 and 3, 16 bits) and c.png (none)."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    masks.mkdir()
    for name in ("a.jpg", "b.png", "c.png"):
        save_image(images / name)
    palette = Image.fromarray(ids(1, 2, 7).astype(np.uint8))
    palette.putpalette([k % 256 for k in range(768)])
    palette.save(masks / "a_mask.png")
    Image.fromarray(ids(1000, 3).astype(np.uint16)).save(masks / "b_mask.png")
    Image.fromarray(ids().astype(np.uint8)).save(masks / "c_mask.png")
    return images, masks


def test_id_masks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = folders
    out = tmp_path / "out" / "set.json"
    summary = convert_id_masks(images, masks, out, class_name="cell", mask_suffix="_mask")
    assert (summary.images, summary.images_without_objects, summary.annotations) == (3, 1, 5)
    coco = COCO(str(out))
    assert [c["name"] for c in coco.cats.values()] == ["cell"]
    for image_id, values in ((1, (1, 2, 7)), (2, (3, 1000)), (3, ())):
        found = [coco.annToMask(a) for a in coco.imgToAnns[image_id]]
        array = {1: ids(1, 2, 7), 2: ids(1000, 3), 3: ids()}[image_id]
        assert len(found) == len(values)
        for mask, value in zip(found, values, strict=True):
            assert np.array_equal(mask, array == value)
    assert len(CocoInstances(images, out)) == 3


def test_void(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = folders
    summary = convert_id_masks(images, masks, tmp_path / "s.json", mask_suffix="_mask", void=7)
    assert summary.annotations == 4


def test_id_masks_faults(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = folders
    out = tmp_path / "s.json"
    with pytest.raises(DatasetError, match=r"a\.jpg: expected its mask in .*a\.png.*mask_suffix '_mask'"):
        convert_id_masks(images, masks, out)
    with pytest.raises(DatasetError, match="expected a folder with images"):
        convert_id_masks(tmp_path / "no", masks, out)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(masks / "a_mask.png")
    Image.fromarray(ids(1)[:-1].astype(np.uint8)).save(masks / "b_mask.png")
    (masks / "c_mask.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"3 fault\(s\)") as caught:
        convert_id_masks(images, masks, out, mask_suffix="_mask")
    text = str(caught.value)
    assert "a_mask.png: expected one channel of whole numbers, got PIL's mode 'RGB'" in text
    assert "b_mask.png: expected 60 x 40 pixels as the image has, got 60 x 39" in text
    assert "c_mask.png: cannot be read as an image" in text
    assert not out.exists()


def stored_mask(left: int, top: int, part: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(part.astype(np.uint8) * 255).save(buffer, format="PNG")
    corners = [[left, top], [left + part.shape[1] - 1, top + part.shape[0] - 1]]
    return {
        "shape_type": "mask",
        "points": corners,
        "mask": base64.b64encode(buffer.getvalue()).decode(),
    }


def shape(label: str, kind: str, points: list[list[float]], group: int | None = None) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": group, "flags": {}}


DISC = np.hypot(*np.mgrid[-6:7, -6:7]) < 6.5
SHAPES = [
    shape("leaf", "polygon", [[3.2, 4.7], [20.5, 2.1], [25.9, 20.0], [8, 30.4], [-7, 16]]),
    shape("leaf", "polygon", [[40, 10], [41, 10], [41, 30]]),
    shape("stem", "rectangle", [[50.4, 35.6], [30.2, 12.9]]),
    shape("stem", "circle", [[30.3, 20.8], [38.1, 25.2]]),
    shape("stem", "circle", [[57, 2], [60, 9]]),
    shape("stem", "oriented_rectangle", [[10, 10], [20, 15], [17, 21], [7, 16]]),
    shape("pot", "polygon", [[1, 31], [9, 31], [9, 39], [1, 39]], group=4),
    shape("pot", "rectangle", [[40, 33], [45, 38]], group=4),
    {**shape("pot", "", [], group=4), **stored_mask(20, 25, DISC)},
    {**shape("leaf", "", []), **stored_mask(47, 0, DISC)},
]


def write_labelme(
    folder: Path, name: str = "a", shapes: list[dict[str, Any]] | None = None, **more: Any
) -> Path:
    save_image(folder / f"{name}.png")
    path = folder / f"{name}.json"
    content = {"version": "5.5.0", "flags": {}, "shapes": SHAPES if shapes is None else shapes}
    content |= {"imagePath": f"{name}.png", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
    path.write_text(json.dumps(content | more), encoding="utf-8")
    return path


def test_labelme_by_labelme(tmp_path: Path) -> None:
    """Read and filled by labelme itself; what overlaps is compared shape by shape."""
    from benchmarks.peers.loading import need

    label_file = need("labelme._label_file")
    utils = need("labelme.utils")
    path = write_labelme(tmp_path)
    loaded = label_file.read_label_file(str(path)).shapes
    assert len(loaded) == len(SHAPES)
    for theirs, ours in zip(loaded, SHAPES, strict=True):
        expected = utils.shapes_to_label(SIZE, [theirs], {theirs["label"]: 1})[1] > 0
        assert expected.any()
        assert np.array_equal(shape_mask("", ours, SIZE), expected), ours["shape_type"]
    # Objects: labelme numbers them by label and group as they come up.
    convert_labelme(tmp_path, tmp_path / "set.json")
    coco = COCO(str(tmp_path / "set.json"))
    masks = [coco.annToMask(a) for a in coco.anns.values()]
    numbers = utils.shapes_to_label(SIZE, loaded, {"leaf": 1, "stem": 2, "pot": 3})[1]
    assert len(masks) == numbers.max() == 8
    pot = np.logical_or.reduce([utils.shapes_to_label(SIZE, [s], {"pot": 1})[1] > 0 for s in loaded[6:9]])
    assert np.array_equal(masks[6], pot)


def test_labelme(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "set.json"
    write_labelme(folder, "a")
    write_labelme(folder / "deeper", "b", SHAPES[:2], imagePath="..\\deeper\\b.png")
    summary = convert_labelme(folder, out)
    assert (summary.images, summary.annotations, summary.categories) == (2, 10, 3)
    content = json.loads(out.read_text())
    assert [i["file_name"] for i in content["images"]] == ["a.png", "deeper/b.png"]
    assert [c["name"] for c in content["categories"]] == ["leaf", "pot", "stem"]
    masks = [COCO(str(out)).annToMask(a) for a in content["annotations"]]
    assert masks[2].sum() == (50 - 30 + 1) * (36 - 13 + 1)  # PIL rounds: x 30..50, y 13..36
    assert masks[6][34, 42] == masks[6][35, 5] == masks[6][31, 26] == 1  # three parts of one pot
    assert masks[6].sum() == 9 * 9 + 6 * 6 + DISC.sum()
    assert np.array_equal(masks[7][:13, 47:60], DISC)
    assert len(CocoInstances(folder, out)) == 2


def test_labelme_classes(tmp_path: Path) -> None:
    line = shape("scale bar", "line", [[1, 1], [9, 1]])
    write_labelme(tmp_path, shapes=[*SHAPES, line])
    out = tmp_path / "set.json"
    with pytest.raises(DatasetError, match=r"a\.json: shapes\[10\] \('scale bar'\): expected .*got 'line'"):
        convert_labelme(tmp_path, out)
    convert_labelme(tmp_path, out, classes=["stem", "leaf", "bud"])
    content = json.loads(out.read_text())
    listed = [(c["id"], c["name"]) for c in content["categories"]]
    assert listed == [(1, "stem"), (2, "leaf"), (3, "bud")]
    assert [a["category_id"] for a in content["annotations"]] == [2, 2, 1, 1, 1, 1, 2]
    convert_labelme(tmp_path, out, classes=["pot"])  # its own output is not taken for input
    assert len(json.loads(out.read_text())["annotations"]) == 1
    for wrong in ([], ["pot", "pot"]):
        with pytest.raises(ValueError, match="expected classes to be different names"):
            convert_labelme(tmp_path, out, classes=wrong)


@pytest.mark.parametrize(
    ("shapes", "more", "message"),
    [
        ([shape("a", "polygon", [[1, 1], [2, 2]])], {}, "expected at least 3 points"),
        ([shape("a", "circle", [[1, 1], ["x", 2]])], {}, "expected 2 points"),
        ([shape("a", "polygon", [[-9, -9], [-5, -9], [-5, -5]])], {}, "'a' to have a pixel in the image"),
        ([{**shape("a", "mask", [[1, 1], [3, 3]]), "mask": "AAAA"}], {}, "expected its mask to be a PNG"),
        ([shape("a", "mask", [[1, 1], [3, 3]])], {}, "expected its mask to be a PNG"),
        ([{**shape("a", "", " "), **stored_mask(55, 0, DISC)}], {}, "expected a mask within the image"),
        (
            [{**shape("a", "", []), **stored_mask(5, 0, DISC), "points": [[5, 0], [9, 9]]}],
            {},
            "5 x 10 pixels",
        ),
        ([{"points": []}], {}, "expected a shape with a label"),
        ([], {"imageHeight": 41}, r"expected imageHeight and imageWidth \(40, 60\)"),
        ([], {"imagePath": "gone.png"}, "expected its image in .*gone.png, found none"),
        ([], {"imagePath": None}, "expected labelme's imagePath and shapes"),
    ],
)
def test_labelme_faults(tmp_path: Path, shapes: list[Any], more: dict[str, Any], message: str) -> None:
    write_labelme(tmp_path, "fine", SHAPES)
    path = write_labelme(tmp_path, "spoiled", shapes, **more)
    with pytest.raises(DatasetError, match=message) as caught:
        convert_labelme(tmp_path, tmp_path / "out.json")
    assert path.name in str(caught.value)


def test_labelme_of_a_turned_image(tmp_path: Path) -> None:
    write_labelme(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    save_image(tmp_path / "a.png", exif=exif)
    with pytest.raises(DatasetError, match=r"a\.png: expected an image without EXIF rotation"):
        convert_labelme(tmp_path, tmp_path / "out.json")


def test_labelme_of_one_image_twice(tmp_path: Path) -> None:
    write_labelme(tmp_path)
    write_labelme(tmp_path, "b", imagePath="a.png")
    with pytest.raises(DatasetError, match=r"b\.json: expected one file for .*a\.png, got .*a\.json too"):
        convert_labelme(tmp_path, tmp_path / "out.json")
    with pytest.raises(DatasetError, match="expected labelme's JSON files, found none"):
        convert_labelme(tmp_path / "no", tmp_path / "out.json")
