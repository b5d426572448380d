"""README.md does what it says: its Python with a model and a picture at hand, its commands by their names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import command_line
import torch
from pages import ROOT
from torchvision.io import write_png

from solo_attn.models import ModelInfo, save_model, solo

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = solo(2, backbone="resnet18", head_channels=32, num_convs=1, min_size=96, max_size=128)
    torch.nn.init.constant_(model.head.category_output.bias, -1.0)
    torch.nn.init.constant_(model.head.mask_outputs[0].bias, 1.0)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    save_model(model, ModelInfo(model.config, ["car", "bus"], [3, 6], {}), tmp_path / "runs/mine/last.ckpt")
    (tmp_path / "data/scenes_small/test").mkdir(parents=True)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    write_png(image, str(tmp_path / "data/scenes_small/test/00003.png"))
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    assert len(blocks[0].split("\n\n")[1].splitlines()) <= 5
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\['(car|bus)'", done.stdout)


def test_every_command_is_one() -> None:
    _, told = command_line.run("--help")
    commands = set(re.findall(r"^solo-attn +(\w+)", TEXT, flags=re.MULTILINE))
    assert {"train", "predict", "eval", "doctor"} <= commands
    for name in commands:
        assert re.search(rf"^[ │|]*{name} ", told, flags=re.MULTILINE), name


def test_commands_can_be_copied() -> None:
    """From no data at all: with files that are in the clone or that a command before has made."""
    (use,) = re.findall(r"^```\n(solo-attn scenes.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    commands = [line.partition("#")[0].split() for line in use.splitlines()]
    assert not any("..." in words for words in commands)
    there = {"data/scenes_small"}
    for _, name, *arguments in commands:
        for path in arguments:
            if "/" in path and name != "scenes" and not path.startswith("configs/"):
                made = name == "train" or any(path.startswith(f"{folder}/") for folder in there)
                assert made, (name, path)
            assert not path.startswith("configs/") or (ROOT / path).is_file()
        if name == "train":
            there.add("runs/mine")
    assert "runs/mine" in there


def test_it_stays_short() -> None:
    assert len(TEXT.splitlines()) <= 140
