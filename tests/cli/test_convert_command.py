"""``solo-attn convert`` of datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

from solo_attn.data import check_dataset


def test_help() -> None:
    code, text = run("convert", "--help")
    assert code == 0
    for name in ("cityscapes", "id-masks", "labelme", "yolo"):
        assert f" {name} " in text
        assert f"solo-attn convert {name}" in run("convert", name, "--help")[1]
    assert "solo-attn inspect" in run("inspect", "--help")[1]


def test_subset(root: Path, tmp_path: Path) -> None:
    code, text = run("convert", "cityscapes", root, tmp_path, "--subset", 3, 2, "--seed", 5)
    assert (code, "3 images" in text, "2 images" in text) == (0, True, True)
    code, text = run("convert", "cityscapes", root, tmp_path, "--subset", 30, 2)
    assert code == 2
    assert "expected at least 30 images to draw from, found 6" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cityscapes", "{0}", "{1}", "--classes", "person,cat"), "expected classes to be different names"),
        (("cityscapes", "{1}", "{1}"), "expected Cityscapes' images"),
        (("id-masks", "{1}", "{1}", "{1}/o.json"), "expected a folder with images, found none"),
        (("labelme", "{1}", "{1}/o.json"), "expected labelme's JSON files, found none"),
        (("yolo", "{1}/data.yaml", "{1}/o.json"), "data.yaml: expected a readable file"),
    ],
)
def test_errors_are_one_line(root: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, text = run("convert", *(a.format(root, tmp_path) for a in arguments))
    assert code == 2
    assert "error:" in text
    assert message in text


def test_id_masks_and_labelme(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    ids = np.zeros((30, 40), dtype=np.uint8)
    ids[5:20, 5:20], ids[5:20, 20:30] = 1, 2
    Image.fromarray(ids).save(tmp_path / "masks" / "a_mask.png")
    Image.fromarray(np.stack([ids * 100] * 3, axis=2)).save(tmp_path / "images" / "a.png")
    out = tmp_path / "ids.json"
    given = ("--class-name", "[cell]", "--mask-suffix", "_mask")
    code, text = run("convert", "id-masks", tmp_path / "images", tmp_path / "masks", out, *given)
    assert (code, "1 image (0 without objects), 2 annotations" in text) == (0, True)
    assert check_dataset(tmp_path / "images", out).annotations == 2
    box = {"label": "cell", "shape_type": "rectangle", "points": [[5, 5], [19, 19]]}
    content = {"imagePath": "a.png", "imageData": None, "shapes": [box, box]}
    (tmp_path / "images" / "a.json").write_text(json.dumps(content))
    code, text = run("convert", "labelme", tmp_path / "images", tmp_path / "lm.json", "--classes", "cell, x")
    assert (code, "2 annotations" in text, "2 categories" in text) == (0, True, True)


def test_yolo(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    (tmp_path / "data.yaml").write_text("val: images\nnames: [leaf]\n")
    out = tmp_path / "val.json"
    code, text = run("convert", "yolo", tmp_path / "data.yaml", out, "--split", "val")
    assert (code, "1 image (0 without objects), 1 annotation" in text) == (0, True), text
    assert check_dataset(tmp_path, out).annotations == 1
