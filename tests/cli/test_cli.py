from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

import solo_attn
from solo_attn.cli import app
from solo_attn.data import read_image
from solo_attn.evaluation import evaluate
from solo_attn.training import Config, ConfigError, TrainResult, load_model

MakeConfig = Callable[..., Config]


def test_help_names_every_command() -> None:
    code, output = run("--help")
    assert code == 0
    for name in ("train", "eval", "predict", "compare", "demo", "convert", "doctor"):
        assert f" {name} " in output
        code, text = run(name, "--help")
        assert code == 0
        assert name == "doctor" or f"solo-attn {name}" in text


def test_version() -> None:
    code, output = run("--version")
    assert code == 0
    assert solo_attn.__version__ in output


def test_doctor() -> None:
    code, output = run("doctor")
    assert code == 0
    assert "torch 2." in output
    assert "backends for torch.float32 on cpu" in output
    assert "grid_attention" in output
    assert "compiled kernels: build " in output


def test_train(config: MakeConfig, tmp_path: Path) -> None:
    config().save(tmp_path / "c.yaml")
    code, output = run("train", tmp_path / "c.yaml", "train.epochs=1", "--out", tmp_path / "run")
    assert code == 0
    assert "Average Precision" in output
    assert "epoch 1" in output
    assert (tmp_path / "run" / "last.ckpt").exists()
    code, output = run("train", tmp_path / "c.yaml", "train.epochs=1", "--out", tmp_path / "run")
    assert code == 2
    assert "--resume" in output


def test_eval(trained: TrainResult, config: MakeConfig, tmp_path: Path) -> None:
    data = config().data
    out = tmp_path / "deep" / "results.json"
    where = ["--images", data.val_images, "--annotations", data.val_annotations]
    code, output = run("eval", trained.last, *where, "--out", out, "--device", "cpu")
    assert code == 0
    assert str(trained.metrics) in output
    results = json.loads(out.read_text())
    assert len(results) > 0
    COCO(data.val_annotations).loadRes(str(out))
    assert trained.metrics == evaluate(data.val_annotations, results)


def with_training_settings(checkpoint: Path, out: Path, settings: dict[str, Any]) -> Path:
    """A copy of the checkpoint that says it was trained with other settings."""
    content = torch.load(checkpoint, weights_only=True)
    content["solo_attn"]["config"] = settings
    torch.save(content, out)
    return out


def test_eval_counts_as_many_instances_as_the_training(
    trained: TrainResult, config: MakeConfig, tmp_path: Path
) -> None:
    data = config().data
    where = ["--images", data.val_images, "--annotations", data.val_annotations, "--device", "cpu"]
    other = with_training_settings(trained.last, tmp_path / "20.ckpt", {"train": {"eval_max_detections": 20}})
    unknown = with_training_settings(trained.last, tmp_path / "none.ckpt", {})
    for arguments, limit in [
        ([trained.last], 100),
        ([other], 20),
        ([other, "--max-detections", 15], 15),
        ([unknown], 100),
    ]:
        code, output = run("eval", *arguments, *where)
        assert code == 0
        assert f"maxDets={limit:>3d} ]" in output


def test_eval_refuses_other_categories(trained: TrainResult, config: MakeConfig, tmp_path: Path) -> None:
    data = config().data
    truth = json.loads(Path(data.val_annotations).read_text())
    for entry in truth["categories"]:
        entry["id"] += 100
    for entry in truth["annotations"]:
        entry["category_id"] += 100
    other = tmp_path / "other.json"
    other.write_text(json.dumps(truth))
    code, output = run("eval", trained.last, "--images", data.val_images, "--annotations", other)
    assert code == 2
    assert "to have the categories" in output


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
        "strip.png": "the model cannot take it: SOLO: expected images[0] to keep a pixel on each side",
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
        assert "in 1 images" in output
        assert {p.name for p in (tmp_path / "deep" / "found").iterdir()} == {"a.png", "results.json"}
    # Named on purpose, they are images as others are.
    code, output = run("predict", trained.last, tmp_path / "deep" / "found", "--out", tmp_path / "o")
    assert code == 0
    assert "in 1 images" in output


def test_predict_again_into_the_folder_of_the_images(trained: TrainResult, tmp_path: Path) -> None:
    """A picture of its own that lies among the photographs is none of them, and is drawn anew."""
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.jpg")
    Image.new("RGB", (90, 60), "blue").save(tmp_path / "b.webp")
    for _ in range(2):
        code, output = run("predict", trained.last, tmp_path, "--out", tmp_path)
        assert code == 0, output
        assert "in 2 images" in output
        assert {p.name for p in tmp_path.iterdir()} == {"a.jpg", "b.webp", "a.png", "b.png", "results.json"}


def test_errors_are_one_line(tmp_path: Path) -> None:
    cases = [
        (["train", tmp_path / "none.yaml"], "none.yaml"),
        (["train", "--nonsense"], "--nonsense"),
        (["predict", tmp_path / "none.ckpt", tmp_path, "--out", tmp_path / "o"], "to hold images"),
        (["predict", tmp_path / "none.ckpt", tmp_path / "x.jpg", "--out", tmp_path / "o"], "x.jpg"),
        (
            ["eval", tmp_path / "none.ckpt", "--images", tmp_path, "--annotations", tmp_path / "a.json"],
            "none.ckpt",
        ),
        (
            ["eval", tmp_path / "none.ckpt", "--images", ".", "--annotations", "a", "--device", "abacus"],
            "abacus",
        ),
    ]
    for arguments, message in cases:
        code, output = run(*arguments)
        assert code == 2, arguments
        assert message in output
        assert "Traceback" not in output


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the helper, which hides what a command leaves in the environment."""
    monkeypatch.delenv("SOLO_ATTN_DEBUG", raising=False)
    command = ["train", str(tmp_path / "none.yaml")]
    told = [CliRunner().invoke(app, words).exception for words in (["--debug", *command], command)]
    assert isinstance(told[0], ConfigError)
    assert isinstance(told[1], SystemExit), "it was said for one command"
    told[0] = CliRunner().invoke(app, command, env={"SOLO_ATTN_DEBUG": "1"}).exception
    assert isinstance(told[0], ConfigError)


def test_missing_data_is_one_line(config: MakeConfig, tmp_path: Path) -> None:
    settings = config()
    settings.data.train_annotations = str(tmp_path / "gone.json")
    settings.save(tmp_path / "c.yaml")
    code, output = run("train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert "gone.json" in output


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line(
    trained: TrainResult, config: MakeConfig, tmp_path: Path, workers: int
) -> None:
    """PyTorch packs an error of a worker into the traceback of that process."""
    data = config().data
    images = tmp_path / "images"
    shutil.copytree(data.val_images, images)
    broken = sorted(images.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-500])
    where = ["--images", images, "--annotations", data.val_annotations, "--device", "cpu"]
    code, output = run("eval", trained.last, *where, "--workers", workers)
    assert code == 2
    (line,) = output.strip().splitlines()
    assert line.startswith(f"error: {broken} (image id 2): cannot be read as an image: ")


def test_an_image_that_the_model_cannot_take_is_the_same_line_everywhere(
    trained: TrainResult, tmp_path: Path
) -> None:
    images = []
    for number, (name, size) in enumerate({"a.png": (90, 60), "thin.png": (3000, 2)}.items()):
        Image.new("RGB", size).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
    categories = [
        {"id": category, "name": f"{category}"} for category in load_model(trained.last)[1].category_ids
    ]
    content = {"images": images, "categories": categories, "annotations": []}
    (tmp_path / "set.json").write_text(json.dumps(content))
    told = f"{tmp_path / 'thin.png'}: the model cannot take it: SOLO: expected images[0] to keep a pixel on "
    told += "each side when resized to max_size 96, got [3, 2, 3000], which would become [3, 0, 96]"
    where = ["--images", tmp_path, "--annotations", tmp_path / "set.json", "--device", "cpu"]
    code, output = run("eval", trained.last, *where)
    assert (code, output.strip()) == (2, f"error: {told}")
    code, output = run("predict", trained.last, tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert output.splitlines()[-1] == told


@pytest.mark.parametrize("name", ["out[new]", "o[/x]", "out :cat:"])
def test_paths_are_printed_as_they_are(
    trained: TrainResult, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Brackets are markup to rich, and names between colons pictures."""
    monkeypatch.chdir(tmp_path)
    config(epochs=1).save("c.yaml")
    for folder in (Path(), Path(name) / "labelled"):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), "red").save(folder / "a.png")
    data = config().data
    where = ["--images", data.val_images, "--annotations", data.val_annotations]
    val = ["--val-images", data.val_images, "--val-annotations", data.val_annotations]
    box = {"label": name, "shape_type": "rectangle", "points": [[5, 5], [19, 19]]}
    Path(name, "labelled", "a.json").write_text(
        json.dumps({"imagePath": "a.png", "imageData": None, "shapes": [box]})
    )
    for arguments, told in [
        (["scenes", f"{name}/scenes", "--train", 1, "--val", 1], f"  {name}/scenes/"),
        (["predict", trained.last, "a.png", "--out", f"{name}/found"], f"in 1 images, in {name}/found"),
        (
            ["convert", "labelme", f"{name}/labelled", f"{name}/a.json"],
            f"{name}/a.json: 1 images (0 without objects), 1 annotations (0 crowd regions), 1 categories\n"
            f"  its images: {name}/labelled\n",
        ),
        (
            ["inspect", "--images", f"{name}/labelled", "--annotations", f"{name}/a.json", "--out", name],
            f"│ {name} ",  # the class
        ),
        (
            ["inspect", *where, *val, "--out", name, "--write", f"{name}/mine.yaml"],
            f"  {name}/inspect.json\n  {name}/mine.yaml, in which",
        ),
        (["train", "c.yaml", "--out", f"{name}/run"], f"checkpoints: {name}/run/last.ckpt"),
        (["train", "c.yaml", "--out", f"{name}/run", "--resume"], f"going on from {name}/run/last.ckpt"),
    ]:
        code, output = run(*arguments)
        assert code == 0, output
        assert told in output
    for arguments in (
        ["train", f"{name}/none.yaml"],
        ["convert", "labelme", name, "o.json", "--classes", name],
    ):
        code, output = run(*arguments)
        assert code == 2
        assert name in output


@pytest.mark.parametrize("module", ["lightning", "pycocotools"])
def test_names_the_missing_extra(module: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['solo-attn', 'train', 'c.yaml']; "
        f"from solo_attn.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 2
    assert 'pip install "solo-attn[train]"' in found.stderr
    assert "Traceback" not in found.stderr
