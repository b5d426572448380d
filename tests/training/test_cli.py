from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

import solo_attn
from solo_attn.cli import app
from solo_attn.training import Config, TrainResult

MakeConfig = Callable[..., Config]
runner = CliRunner()


def run(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SOLO_ATTN_DEBUG", raising=False)


def test_help_names_every_command() -> None:
    code, output = run("--help")
    assert code == 0
    for name in ("train", "eval", "predict", "compare", "demo", "doctor"):
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
    assert isinstance(results, list)
    if results:
        COCO(data.val_annotations).loadRes(str(out))


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
    assert isinstance(json.loads((tmp_path / "out" / "results.json").read_text()), list)


def test_predict_names_a_bad_file_and_goes_on(trained: TrainResult, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    code, output = run("predict", trained.last, tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert f"cannot be read: {tmp_path / 'bad.png'}" in output
    assert (tmp_path / "out" / "good.png").exists()


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(ValueError, match=r"none\.yaml"):
        run("--debug", "train", tmp_path / "none.yaml")


def test_missing_data_is_one_line(config: MakeConfig, tmp_path: Path) -> None:
    settings = config()
    settings.data.train_annotations = str(tmp_path / "gone.json")
    settings.save(tmp_path / "c.yaml")
    code, output = run("train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert "gone.json" in output


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
