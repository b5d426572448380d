"""``solo-attn predict``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

from solo_attn.data import read_image
from solo_attn.models import load_model
from solo_attn.training import Config, TrainResult

MakeConfig = Callable[..., Config]


def test_predict(trained: TrainResult, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "sub"
    folder.mkdir(parents=True)
    Image.new("RGB", (90, 60), "red").save(folder / "a.png")
    Image.new("L", (50, 70)).save(tmp_path / "in" / "a.jpg")
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    code, output = run("predict", trained.last, tmp_path / "in", "--out", tmp_path / "out")
    assert code == 0
    assert "2 images" in output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "a-2.png", "results.json"}
    sizes = {Image.open(tmp_path / "out" / name).size for name in ("a.png", "a-2.png")}
    assert sizes == {(90, 60), (50, 70)}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = {1: str(tmp_path / "in" / "a.jpg"), 2: str(folder / "a.png")}
    assert {(r["image_id"], r["file_name"]) for r in results} == set(names.items())
    model, info = load_model(trained.last)
    found = model([read_image(folder / "a.png") / 255])[0]
    mine = [r for r in results if r["image_id"] == 2]
    assert [r["score"] for r in mine] == pytest.approx(found["scores"].tolist())
    assert [r["category_id"] for r in mine] == [info.category_ids[k] for k in found["labels"].tolist()]


def test_predict_takes_each_file_once_however_it_is_spelt(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 60), "red").save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    given = ["in/b.png", tmp_path / "in", "in/../in/a.png", "linked"]
    code, output = run("predict", trained.last, *given, "--out", "out")
    assert code == 0
    assert "in 2 images" in output
    assert {p.name for p in Path("out").iterdir()} == {"a.png", "b.png", "results.json"}
    results = json.loads(Path("out", "results.json").read_text())
    named = {(r["image_id"], r["file_name"]) for r in results}
    assert named == {(1, "in/b.png"), (2, str(tmp_path / "in" / "a.png"))}


def test_predict_names_a_bad_file_and_goes_on(trained: TrainResult, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    code, output = run("predict", trained.last, tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert f"{tmp_path / 'bad.png'}: cannot be read as an image" in output
    assert (tmp_path / "out" / "good.png").exists()


def bad_images(folder: Path) -> dict[str, str]:
    """Files that a training refuses or a model cannot take, and what is said of each."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-500])
    Image.new("I;16", (90, 60), 40_000).save(folder / "deep.png")
    Image.new("F", (90, 60), 0.5).save(folder / "float.tif")
    Image.new("RGB", (3000, 2)).save(folder / "strip.png")
    return {
        "cut.png": "cannot be read as an image",
        "deep.png": "expected 8 bits a channel, got PIL's mode 'I;16'",
        "float.tif": "expected 8 bits a channel, got PIL's mode 'F'",
        "strip.png": "not a valid input of the model: SOLO: expected images[0] to keep a pixel on each side",
    }


def test_predict_does_what_it_can(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    faults = bad_images(folder)
    Image.new("RGB", (90, 60), "red").save(folder / "a.png")
    Image.new("RGB", (90, 60), "blue").save(folder / "z.png")
    (folder / "folder.png").mkdir()
    # More pixels than PIL thinks healthy; it would be the last one, and the results with it.
    Image.new("RGB", (400, 300)).save(folder / "zz.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    code, output = run("predict", trained.last, folder, "--out", out)
    assert code == 1
    assert "2 images" in output
    for name, fault in {**faults, "zz.png": "cannot be read as an image"}.items():
        assert f"{folder / name}: {fault}" in output
    assert "Traceback" not in output
    assert "folder.png" not in output
    assert {p.name for p in out.iterdir()} == {"a.png", "z.png", "results.json"}
    results = json.loads((out / "results.json").read_text())
    assert {r["file_name"] for r in results} == {str(folder / "a.png"), str(folder / "z.png")}


def test_predict_turns_photos_as_exif_says(trained: TrainResult, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.jpg", exif=exif)
    code, _ = run("predict", trained.last, tmp_path / "a.jpg", "--out", tmp_path / "out")
    assert code == 0
    assert Image.open(tmp_path / "out" / "a.png").size == (60, 90)


def test_predict_overwrites_no_input(trained: TrainResult, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (90, 60), "red").save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.png").symlink_to(photos / "a.png")
    for images, out in [
        (photos, photos),
        (photos / "a.png", photos),
        (photos, tmp_path / "photos" / ".." / "photos"),
        (photos, linked),
    ]:
        code, output = run("predict", trained.last, images, "--out", out)
        assert code == 2
        assert f"{out / 'a.png'} is the image {photos / 'a.png'}" in output
    assert (photos / "a.png").read_bytes() == before
    assert {p.name for p in photos.iterdir()} == {"a.png"}


def test_predict_into_a_file(trained: TrainResult, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    code, output = run("predict", trained.last, tmp_path / "a.png", "--out", tmp_path / "a.png")
    assert code == 2
    assert f"expected --out to be a folder, got the file {tmp_path / 'a.png'}" in output


def test_predict_again_leaves_its_own_pictures_out(trained: TrainResult, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    for _ in range(2):
        code, output = run("predict", trained.last, tmp_path, "--out", tmp_path / "deep" / "found")
        assert code == 0
        assert "in 1 image," in output
        assert {p.name for p in (tmp_path / "deep" / "found").iterdir()} == {"a.png", "results.json"}
    # Named on purpose, they are images as others are.
    code, output = run("predict", trained.last, tmp_path / "deep" / "found", "--out", tmp_path / "o")
    assert code == 0
    assert "in 1 image," in output


def test_predict_again_into_the_folder_of_the_images(trained: TrainResult, tmp_path: Path) -> None:
    """A picture of its own that lies among the photographs is none of them, and is drawn anew."""
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.jpg")
    Image.new("RGB", (90, 60), "blue").save(tmp_path / "b.webp")
    for _ in range(2):
        code, output = run("predict", trained.last, tmp_path, "--out", tmp_path)
        assert code == 0, output
        assert "in 2 images" in output
        assert {p.name for p in tmp_path.iterdir()} == {"a.jpg", "b.webp", "a.png", "b.png", "results.json"}
