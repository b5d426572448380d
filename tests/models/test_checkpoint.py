from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from solo_attn.models import CheckpointError, export_safetensors, load_model
from solo_attn.training import TrainResult


def test_holds_plain_data_only(trained: TrainResult) -> None:
    for path in (trained.last, trained.best):
        assert path is not None
        checkpoint = torch.load(path, weights_only=True)
        info = checkpoint["solo_attn"]
        assert info["model"]["backbone"] == "resnet18"
        assert len(info["class_names"]) == len(info["category_ids"]) == info["model"]["num_classes"]
        assert info["config"]["train"]["epochs"] == 2


def test_safetensors_round_trip(trained: TrainResult, tmp_path: Path) -> None:
    model, info = load_model(trained.last)
    out = export_safetensors(trained.last, tmp_path / "model.safetensors")
    again, info_again = load_model(out)
    assert info == info_again
    assert model.config == again.config
    assert not again.training
    image = torch.rand(3, 64, 96)
    first, second = model([image])[0], again([image])[0]
    assert len(first["scores"]) > 0
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = again.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_bad_files(trained: TrainResult, tmp_path: Path) -> None:
    cases = {}
    cases["none.ckpt"] = "is not there"
    (tmp_path / "text.ckpt").write_text("hello")
    cases["text.ckpt"] = "cannot be read"
    (tmp_path / "cut.ckpt").write_bytes(trained.last.read_bytes()[:1000])
    cases["cut.ckpt"] = "cannot be read"
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    cases["other.ckpt"] = "written by solo-attn train"
    torch.save([1], tmp_path / "list.ckpt")
    cases["list.ckpt"] = "written by solo-attn train"
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    cases["other.safetensors"] = "in its metadata"
    (tmp_path / "text.safetensors").write_text("hello")
    cases["text.safetensors"] = "cannot be read"
    checkpoint = torch.load(trained.last, weights_only=True)
    for name, state in {"state.ckpt": [1], "key.ckpt": {1: torch.zeros(1)}}.items():
        torch.save({**checkpoint, "state_dict": state}, tmp_path / name)
        cases[name] = "to be a dict of names and tensors, got (list|dict with other keys)"
    del checkpoint["state_dict"][next(iter(checkpoint["state_dict"]))]
    torch.save(checkpoint, tmp_path / "part.ckpt")
    cases["part.ckpt"] = "does not fit its own settings"
    for name, message in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value)


class Unpickled:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_a_file_from_a_stranger_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "solo_attn": Unpickled()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "unpickled").exists()


WITHOUT_LIGHTNING = """
import sys
for name in ("lightning", "pytorch_lightning", "pycocotools", "matplotlib", "yaml", "tensorboard"):
    sys.modules[name] = None
from pathlib import Path
import torch
from solo_attn.models import ModelInfo, export_safetensors, load_model, save_model, solo
from solo_attn.interop.mmdet import convert_checkpoint
folder = Path(sys.argv[1])
small = {"backbone": "resnet18", "norm": "gn", "fpn_channels": 32, "head_channels": 32, "num_convs": 1}
model = solo(2, **small)
save_model(model, ModelInfo(model.config, ["a", "b"], [1, 2], {}), folder / "a.ckpt")
export_safetensors(folder / "a.ckpt", folder / "a.safetensors")
for name in ("a.ckpt", "a.safetensors"):
    again, info = load_model(folder / name)
    assert info.class_names == ["a", "b"]
    assert all(torch.equal(x, model.state_dict()[key]) for key, x in again.state_dict().items())
came = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(sorted(came & {"lightning", "pytorch_lightning", "pycocotools"}), "solo_attn.training" in sys.modules)
"""


def test_loading_saving_and_converting_need_no_lightning(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_LIGHTNING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[] False"), done.stderr


def test_a_ckpt_needs_no_safetensors(trained: TrainResult) -> None:
    """Nothing of the extra, that is: the message comes where the other kind of file is read."""
    code = """
import sys
sys.modules["safetensors"] = None
from solo_attn.models import CheckpointError, export_safetensors, load_model
load_model(sys.argv[1])
try:
    export_safetensors(sys.argv[1], sys.argv[1] + ".safetensors")
except ImportError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(trained.last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = "a .safetensors file: expected safetensors to be installed; run in the clone: "
    expected += 'pip install -e ".[train]"'
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
