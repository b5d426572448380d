"""docs/export.md does what it says, in this process, in order: a ResNet by its file, and by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run
from pages import follow_here

import solo_attn

pytest.importorskip("onnxruntime", reason='the extra "export" is not installed')
pytest.importorskip("onnxscript", reason='the extra "export" is not installed')


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("page")
    return folder / "runs" / "export", follow_here("export.md", folder)


def test_the_page(followed: tuple[Path, list[str]]) -> None:
    folder, printed = followed
    written, *instances, same, predicted = printed
    assert written.startswith("runs/export/model.onnx: ")
    assert len(instances) > 2
    assert all(line.split()[0] in ("cell", "debris") for line in instances)
    assert same == "True True"
    assert f"{len(instances)} instances in 1 image," in predicted
    assert {path.name for path in (folder / "found").iterdir()} >= {"photo.png", "results.json"}


def test_settings_of_an_exported_file(followed: tuple[Path, list[str]]) -> None:
    file = followed[0] / "model.onnx"
    predictor = solo_attn.load(file, tile=64, tile_overlap=16)
    assert predictor.model.settings.tile == 64
    assert predictor.info.class_names == ["cell", "debris"]
    with pytest.raises(ValueError, match=r"^load: expected settings to be among tile, tile_overlap, got"):
        solo_attn.load(file, nms_pre=3)
    with pytest.raises(ValueError, match=r"^load: expected device to be cpu with an exported file, got cuda"):
        solo_attn.load(file, device="cuda")


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    code, output = run("export", tmp_path / "none.ckpt", tmp_path / "model.onnx")
    assert code == 2
    assert "which is not there" in output
    assert run("export", tmp_path / "none.ckpt", tmp_path / "model.tflite")[0] == 2
