"""What is the same for every command: help, errors as one line, paths as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run
from PIL import Image
from typer.testing import CliRunner

import solo_attn
from solo_attn.cli import app
from solo_attn.models import load_model
from solo_attn.training import Config, ConfigError, TrainResult

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


FOLDERS = {
    "train": "train c.yaml --out {}",
    "compare": "compare c.yaml --out {}",
    "demo": "demo --out {}",
    "scenes": "scenes {}",
    "predict": "predict c.ckpt photos --out {}",
    "inspect": "inspect --out {}",
    "cityscapes": "convert cityscapes streets {}",
}
EVAL = "eval c.ckpt --images photos --annotations a.json"
FILES = {
    "inspect": "inspect --write {}.yaml",
    **{f"eval {option}": f"{EVAL} {option} {{}}" for option in ("--out", "--picture", "--report")},
    "export": "export c.ckpt {}.onnx",
    "mmdet": "convert mmdet c.pth {}.ckpt",
    "id-masks": "convert id-masks photos masks {}.json",
    "labelme": "convert labelme labelled {}.json",
    "yolo": "convert yolo data.yaml {}.json",
}


@pytest.mark.parametrize(
    ("command", "folder"),
    [*((command, True) for command in FOLDERS.values()), *((command, False) for command in FILES.values())],
    ids=[*FOLDERS, *(f"{name}, a file" for name in FILES)],
)
def test_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, folder: bool
) -> None:
    """It is said before any work, and names the argument: nothing else that these commands name is there."""
    words = command.split()
    place = next(k for k, word in enumerate(words) if "{}" in word)
    argument = words[place - 1] if words[place - 1].startswith("--") else "OUT"

    def said(path: Path) -> str:
        given = [*words[:place], path, *words[place + 1 :]]
        code, text = run(*given)
        assert code == 2
        (line,) = text.splitlines()
        assert line.startswith("error: ")
        assert f": expected {argument}" in line
        assert str(path) in line
        return line

    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("a file")
    if folder:
        assert said(tmp_path / "there").endswith(f"to be a folder, got the file {tmp_path / 'there'}")
    else:
        made = tmp_path / words[place].format("made")
        made.mkdir()
        assert said(made).endswith(f"to be a file, got the folder {made}")
    below = tmp_path / "there" / "deep" / words[place].format("out")
    assert said(below).endswith(f"that can be written, got {below}, but {tmp_path / 'there'} is no folder")
    monkeypatch.setattr(os, "access", lambda there, _: Path(there) != tmp_path)  # root may write anywhere
    new = tmp_path / "new" / words[place].format("out")
    assert said(new).endswith(f"got {new}, but there is no permission to write in {tmp_path}")
    assert not (tmp_path / "new").exists()


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
    begun, line = output.strip().splitlines()
    assert begun == f"evaluating: {len(list(images.iterdir()))} images"
    assert line.startswith(f"error: {broken} (image id 2): cannot be read as an image: ")


def test_an_image_that_the_model_cannot_take_is_the_same_line_everywhere(
    trained: TrainResult, tmp_path: Path
) -> None:
    images = []
    for number, (name, size) in enumerate({"a.png": (90, 60), "thin.png": (3000, 2)}.items()):
        Image.new("RGB", size).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
    info = load_model(trained.last)[1]
    classes = zip(info.category_ids, info.class_names, strict=True)
    categories = [{"id": category, "name": name} for category, name in classes]
    content = {"images": images, "categories": categories, "annotations": []}
    (tmp_path / "set.json").write_text(json.dumps(content))
    told = f"{tmp_path / 'thin.png'}: not a valid input of the model: SOLO: expected images[0] to keep a "
    told += "pixel on each side when resized to max_size 96, got [3, 2, 3000], which would become [3, 0, 96]"
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
        (["predict", trained.last, "a.png", "--out", f"{name}/found"], f"in 1 image, in {name}/found"),
        (
            ["convert", "labelme", f"{name}/labelled", f"{name}/a.json"],
            f"{name}/a.json: 1 image (0 without objects), 1 annotation (0 crowd regions), 1 category\n"
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
        (["train", "c.yaml", "--out", f"{name}/run"], f"  {name}/run/last.ckpt"),
        (["train", "c.yaml", "--out", f"{name}/run", "--resume"], f"continuing from {name}/run/last.ckpt"),
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
        f"from solo_attn.__main__ import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 2
    assert f"expected {module} to be installed" in found.stderr
    assert 'run in the clone: pip install -e ".[train]"' in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_the_command_names_its_own_extra(module: str, tmp_path: Path) -> None:
    """The ops and the model do without both."""
    code = f"import sys; sys.modules[{module!r}] = None; import solo_attn, solo_attn.models; "
    code += "from solo_attn.__main__ import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 2
    expected = (
        f'error: solo-attn: expected {module} to be installed; run in the clone: pip install -e ".[cli]"'
    )
    assert found.stderr.splitlines() == [expected]


def test_an_error_is_not_hidden_by_a_missing_extra(tmp_path: Path) -> None:
    """Showing it imports nothing; what is a fault of the program keeps its traceback."""
    program = """
import sys
sys.modules["lightning"] = sys.modules["pycocotools"] = None
from solo_attn.__main__ import main
from solo_attn.cli.app import command
from solo_attn.models import load_model

@command
def broken(kind: str) -> None:
    if kind == "file":
        load_model("none.ckpt")
    raise {"value": ValueError, "runtime": RuntimeError}[kind](f"a fault: {kind}")

sys.argv = ["solo-attn", "broken", sys.argv[1]]
main()
"""
    for kind, status, shown in (("file", 2, "none.ckpt"), ("value", 1, "ValueError: a fault: value")):
        command = [sys.executable, "-c", program, kind]
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert found.returncode == status, found.stderr
        assert shown in found.stderr.splitlines()[-1]
        assert ("Traceback" in found.stderr) == (status == 1)
        assert "pip install" not in found.stderr
