"""docs/formats.md does what it says, and what it writes is read by the libraries it is for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from pages import follow
from PIL import Image
from pycocotools.coco import COCO

from benchmarks.peers.loading import need
from solo_attn.data import CocoInstances, read_image
from solo_attn.models import load_model


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("page")
    output = follow("formats.md", folder, Path(need("supervision").__file__).parents[1])
    assert [path.name for path in folder.iterdir()] == ["runs"], "in a clone, git ignores no other folder"
    return folder / "runs" / "formats", output


def test_the_page(followed) -> None:
    folder, output = followed
    (count,) = re.findall(r"(\d+) instances\n", output)
    assert int(count) > 5
    assert f"{count} instances in 1 image, in runs/formats/found" in output
    assert re.search(r"\{'id': 1, 'label': '(car|bus)', 'score': 0\.\d+, .*\} (Multi)?Polygon", output)
    assert "uint16 (240, 320)" in output
    assert re.search(rf"^{count} \d+ \['(car|bus)'", output, flags=re.MULTILINE)
    files = {p.name for p in (folder / "found").iterdir()}
    whole = {"results.json", "dataset.json", "label_studio.json", "label_studio.xml"}
    assert files == {"photo.png", "photo.geojson", "photo.ids.png", *whole}
    read = CocoInstances(folder, folder / "dataset.json")
    mine = CocoInstances(folder, folder / "found" / "dataset.json")
    assert read.coco.dataset["annotations"] == mine.coco.dataset["annotations"]
    tasks = [json.loads((place / "label_studio.json").read_text()) for place in (folder, folder / "found")]
    assert tasks[0] == tasks[1]


def test_all_formats_tell_the_same(followed) -> None:
    folder, _ = followed
    model, _ = load_model(folder / "last.ckpt")
    found = model([read_image(folder / "photo.png") / 255])[0]
    shown = int((found["scores"] >= 0.3).sum())
    assert 2 < shown < len(found["scores"])
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1, "height": 240, "width": 320}],
        "categories": [{"id": 3, "name": "car"}, {"id": 6, "name": "bus"}],
        "annotations": [],
    }
    truth.createIndex()
    for place in (folder / "found", folder):
        read = truth.loadRes(str(place / "results.json"))
        annotations = [read.anns[k] for k in sorted(read.anns)]
        assert [a["category_id"] for a in annotations] == [(3, 6)[k] for k in found["labels"].tolist()]
        for annotation, mask in zip(annotations, found["masks"], strict=True):
            assert np.array_equal(read.annToMask(annotation), mask.numpy())
        features = json.loads((place / "photo.geojson").read_text())["features"]
        assert [f["properties"]["id"] for f in features] == list(range(1, shown + 1))
        shapely = need("shapely")
        areas = [shapely.from_geojson(json.dumps(f["geometry"])).area for f in features]
        assert areas == found["masks"][:shown].sum((1, 2)).tolist()
        with Image.open(place / "photo.ids.png") as picture:
            ids = np.asarray(picture)
        assert set(np.unique(ids)) <= set(range(shown + 1))
        assert np.array_equal(ids > 0, found["masks"][:shown].any(0).numpy())
        assert np.array_equal(ids == 1, found["masks"][0].numpy())


def test_predict_writes_what_is_asked_for_and_overwrites_nothing(followed, tmp_path) -> None:
    folder, _ = followed
    photos = tmp_path / "in"
    photos.mkdir()
    for name in ("a.png", "a.jpg", "a.ids.png"):
        with Image.open(folder / "photo.png") as picture:
            picture.resize((64, 48)).save(photos / name)
    code, _ = run("predict", folder / "last.ckpt", photos, "--out", tmp_path / "out", "--format", "geojson")
    assert code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.geojson", "a-2.geojson", "a.ids.geojson"}
    both = ["--format", "ids", "--format", "picture"]
    code, _ = run("predict", folder / "last.ckpt", photos, "--out", tmp_path / "both", *both)
    assert code == 0
    names = {p.name for p in (tmp_path / "both").iterdir()}
    assert len(names) == 6, "no picture in the place of another's ids"
    assert {"a.png", "a.ids.png", "a.ids-2.png"} <= names or {"a-2.png", "a.ids.png"} <= names
    code, output = run("predict", folder / "last.ckpt", tmp_path / "both", "--out", tmp_path / "both", *both)
    assert (code, "to hold images" in output) == (2, True), "neither pictures nor ids are images"
    code, output = run("predict", folder / "last.ckpt", photos / "a.ids.png", "--out", photos, *both)
    assert (code, "where nothing is overwritten" in output) == (2, True)
    code, output = run("predict", folder / "last.ckpt", photos, "--out", photos, "--format", "x")
    assert (code, "'coco-dataset', 'parquet', 'geojson', 'label-studio', 'ids'" in output) == (2, True)
