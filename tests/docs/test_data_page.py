"""docs/data.md, followed word for word on small data: in one folder, its commands in their order."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import command_line
import numpy as np
import pytest
from PIL import Image

from solo_attn.training import load_config

ROOT = Path(__file__).parents[2]


def commands():
    """Those of its blocks of code, lines that go on joined; blocks of "sh" need downloads."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def clone(folder):
    """What the page takes from a clone, and the layouts it names that nobody draws yet."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "tests" / "helpers").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "helpers" / "small_cityscapes.py", folder / "tests" / "helpers")
    for name in ("PNGImages", "PedMasks", "labelled", "leaves/images/train", "leaves/labels/train"):
        (folder / name).mkdir(parents=True)
    photo, ids = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), np.uint8)
    ids[5:30, 5:20], ids[10:35, 30:50] = 1, 2
    Image.fromarray(photo).save(folder / "PNGImages" / "FudanPed00001.png")
    Image.fromarray(ids).save(folder / "PedMasks" / "FudanPed00001_mask.png")
    Image.fromarray(photo).save(folder / "labelled" / "plant.png")
    Image.fromarray(photo).save(folder / "leaves" / "images" / "train" / "a.png")
    (folder / "leaves" / "labels" / "train" / "a.txt").write_text("0 0.1 0.1 0.6 0.1 0.6 0.8\n")
    (folder / "leaves" / "data.yaml").write_text("train: images/train\nnames: [leaf]\n")
    corners = [[5, 5], [30, 5], [30, 30], [5, 30]]
    shapes = [
        {"label": label, "points": corners, "shape_type": "polygon", "group_id": None, "flags": {}}
        for label in ("leaf", "stem")
    ]
    content = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": "plant.png", "imageData": None}
    (folder / "labelled" / "plant.json").write_text(
        json.dumps(content | {"imageHeight": 40, "imageWidth": 60})
    )


def run(words):
    """One command; what it says if it is one of ours."""
    if words[0] == "python":
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")
        return ""
    assert words[0] == "solo-attn", words
    code, output = command_line.run(*words[1:])
    assert code == 0, (words, output)
    return output


def counted(path):
    found = json.loads(Path(path).read_text())
    return len(found["images"]), len(found["annotations"])


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    before = {path.name for path in tmp_path.iterdir()}
    subset, said = "--subset", {}
    for words in commands():
        if subset in words:
            assert counted("data/streets_coco/instances_train.json")[0] > 4
        said[" ".join(words[:3])] = run(words)
    names = ["convert cityscapes", "inspect --config", "train runs/streets.yaml", "convert id-masks"]
    assert set(said) >= {f"solo-attn {name}" for name in [*names, "convert labelme"]}

    assert counted("data/streets_coco/instances_train.json")[0] == 4  # what --subset left
    assert counted("data/streets_coco/instances_val.json")[0] == 2
    assert counted("pedestrians.json") == (1, 2)
    assert counted("labelled.json") == (1, 2)
    written = load_config("runs/streets.yaml")
    assert written.data.train_annotations == "data/streets_coco/instances_train.json"
    assert written.model.scale_ranges != load_config("configs/nuclei_small.yaml").model.scale_ranges
    assert Path("runs/streets/last.ckpt").exists()
    # In a clone, git ignores what the examples that can be run there leave.
    assert {path.name for path in tmp_path.iterdir()} - before == {
        "data",
        "runs",
        "pedestrians.json",
        "labelled.json",
    }
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/data/", "runs/"} <= set(ignored)
