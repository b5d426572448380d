"""The nuclei of the 2018 Data Science Bowl as they are published, drawn small, and what is made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from solo_attn.data import check_dataset
from tools import real_data

SIZE = (20, 30)  # not square, so that mixing them up shows


def squares(seed: int) -> list[np.ndarray]:
    """Masks bool [20, 30] of two nuclei."""
    found = []
    for left in (2, 17):
        mask = np.zeros(SIZE, bool)
        mask[2 + seed : 9 + seed, left : left + 8] = True
        found.append(mask)
    return found


def draw(folder: Path) -> None:
    rows = []
    for part, count in (("train", 4), ("test", 2)):
        for seed in range(count):
            name = f"{part}{seed}"
            place = folder / f"stage1_{part}" / name
            (place / "images").mkdir(parents=True)
            Image.new("RGBA", SIZE[::-1], (90, 40, 10, 255)).save(place / "images" / f"{name}.png")
            for number, mask in enumerate(squares(seed)):
                if part == "train":
                    (place / "masks").mkdir(exist_ok=True)
                    Image.fromarray(mask).save(place / "masks" / f"{number}.png")
                else:
                    down = mask.T.ravel()
                    starts = np.flatnonzero(np.diff(down, prepend=False) & down)
                    rows.append([name, " ".join(f"{start + 1} 7" for start in starts), *SIZE, "Public"])
    with (folder / "stage1_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ImageId", "EncodedPixels", "Height", "Width", "Usage"], *rows])


def test_nuclei(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    monkeypatch.setattr(real_data, "TRAIN", 2)
    monkeypatch.setattr(real_data, "VAL", 1)
    real_data.nuclei(tmp_path)
    names: dict[str, list[str]] = {}
    for part, images in (
        ("test", "test"),
        ("train", "train"),
        ("paper_train450", "train"),
        ("paper_val50", "train"),
    ):
        path = tmp_path / f"instances_{part}.json"
        summary = check_dataset(tmp_path / f"images_{images}", path, decode=True)
        content = json.loads(path.read_text())
        names[part] = [image["file_name"] for image in content["images"]]
        assert summary.annotations == 2 * summary.images == 2 * len(names[part])
        for image in content["images"]:
            mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
            masks = [coco_mask.decode(entry["segmentation"]) for entry in mine]
            assert np.array_equal(masks, squares(int(image["file_name"][-5])))
    assert [len(names[part]) for part in names] == [2, 4, 2, 1]
    assert not set(names["paper_train450"]) & set(names["paper_val50"])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^real_data: expected .*stage1_train, which is not there"):
        real_data.nuclei(tmp_path)


def test_where_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOLO_ATTN_DATA", raising=False)
    monkeypatch.setattr(real_data, "ROOT", tmp_path / "clone")
    assert real_data.find("nuclei") is None
    for folder in ("clone/data/nuclei", "named/nuclei"):
        (tmp_path / folder).mkdir(parents=True)
        monkeypatch.setenv("SOLO_ATTN_DATA", str(tmp_path / "named"))
        assert (real_data.find("nuclei") or Path()).samefile(tmp_path / folder)
