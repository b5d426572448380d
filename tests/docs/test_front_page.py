"""README.md does what it says: its Python with a model and a picture at hand, its commands by their names."""

from __future__ import annotations

import itertools
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
    lines = [line.partition("#")[0].split() for line in use.splitlines()]
    assert not any("..." in words for words in lines)
    parts = [word.removeprefix("--") for word in lines[0] if word in ("--train", "--val", "--test")]
    made = {lines[0][2], *(f"{lines[0][2]}/{part}{end}" for part in parts for end in ("", ".json"))}
    for _, name, *words in lines[1:]:
        outputs = {after for option, after in itertools.pairwise(words) if option == "--out"}
        for path in [word for word in words if "/" in word and word not in outputs]:
            assert path in made or (ROOT / path).is_file(), f"{name} needs {path}"
        if name == "train":
            made |= {f"{folder}/last.ckpt" for folder in outputs}


def test_the_configuration_of_own_data_can_be_written(tmp_path: Path) -> None:
    """Its command asks for all that `inspect --write` needs."""
    (command,) = re.findall(r"^solo-attn (inspect --images .*)$", TEXT, flags=re.MULTILINE)
    code, output = command_line.run(*command.replace("my.yaml", str(tmp_path / "my.yaml")).split())
    assert code == 2
    assert "IMAGES" in output or "TRAIN.json" in output, "it is refused before it looks for the data"


def test_it_stays_short() -> None:
    assert len(TEXT.splitlines()) <= 140
