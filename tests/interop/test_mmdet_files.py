"""Reading mmdetection's checkpoint files: the command, what is refused, and that nothing in them is run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run

from benchmarks.peers.loading import need

need("mmdet")

from mmdet_models import SMALL, config, detector, photo, save  # noqa: E402

from solo_attn.interop.mmdet import convert_checkpoint  # noqa: E402
from solo_attn.interop.mmdet.settings import read_settings  # noqa: E402
from solo_attn.models import CheckpointError, load_model  # noqa: E402


@pytest.fixture(scope="module")
def solo() -> tuple[Any, Any]:
    settings = config(18, **SMALL)
    return detector(settings), settings


def refused(path: Path, message: str) -> None:
    """One line, by the function and by the command, that names the file."""
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        convert_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    out = path.with_name("out.ckpt")
    code, output = run("convert", "mmdet", path, out)
    assert code == 2
    assert message in output
    assert not out.exists()


def test_the_command(solo, tmp_path) -> None:
    path = save(*solo, tmp_path / "epoch_3.pth")
    code, output = run("convert", "mmdet", path, tmp_path / "deep" / "solo.safetensors")
    assert code == 0
    assert "note" not in output
    assert "resnet18, 5 classes (person, rider, car, truck, bus)" in output
    model, info = load_model(tmp_path / "deep" / "solo.safetensors")
    other, _ = load_model_of(path, tmp_path / "solo.ckpt")
    image = photo(0).float() / 255
    found, again = model([image])[0], other([image])[0]
    assert len(found["scores"]) > 10
    assert all(torch.equal(found[key], again[key]) for key in found)
    assert info.class_names[0] == "person"
    code, output = run("convert", "mmdet", path, tmp_path / "solo.pth")
    assert (code, "expected OUT to end with .ckpt or .safetensors" in output) == (2, True)


def load_model_of(path: Path, out: Path) -> Any:
    convert_checkpoint(path, out)
    return load_model(out)


def test_training_logs_in_the_file_are_left_out(solo, tmp_path) -> None:
    path = save(*solo, tmp_path / "a.pth")
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert "mmengine.logging.history_buffer.HistoryBuffer" in unsafe
    before = set(torch.serialization.get_safe_globals())
    assert convert_checkpoint(path).notes == []
    assert set(torch.serialization.get_safe_globals()) == before


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_nothing_in_the_file_is_run(solo, tmp_path) -> None:
    trap = tmp_path / "trap"
    path = save(*solo, tmp_path / "a.pth", message_hub=Hostile(trap))
    try:
        convert_checkpoint(path)
    except CheckpointError as error:
        assert "without running code" in str(error)  # noqa: PT017 - either is fine
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "a trap that works"


def test_without_a_configuration_the_published_settings_are_assumed(solo, tmp_path) -> None:
    path = save(*solo, tmp_path / "a.pth", meta=None, message_hub=None, optimizer=None)
    done = convert_checkpoint(path)
    assert any("settings of mmdetection's configs/solo are assumed" in note for note in done.notes)
    assert any("numbered" in note for note in done.notes)
    assert done.info.model["max_size"] == 1333
    code, output = run("convert", "mmdet", path, tmp_path / "a.ckpt")
    assert code == 0
    assert output.count("note: ") == 2


def test_the_published_settings_are_the_defaults_here() -> None:
    published = read_settings(None, bottleneck=True).model
    text = config(50, classes=80, fpn=256).pretty_text.replace("210", "1333").replace("150", "800")
    stored = read_settings(text, bottleneck=True)
    assert stored.notes == []
    assert published.items() <= stored.model.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("decoupled", "expected mask_head.type = 'DecoupledSOLOLightHead', which this library is made for"),
        ("solov2", "got none for mask_head.mask_feature_head.conv_pred.conv.weight"),
        ("other", "expected a detector of mmdetection 3.x: SOLO, Decoupled SOLO or SOLOv2"),
        ("missing", "expected all weights of the model, got none for backbone.fpn.inner_blocks.2.0.bias"),
        ("no conv_cls", "expected all weights of the model, got none for mask_head.conv_cls.weight"),
        ("unknown", "expected no other weights than the model's, got backbone.layer4.0.conv_offset.weight"),
        ("shape", "expected neck.fpn_convs.1.conv.weight of shape [64, 64, 3, 3], got [64, 64, 1, 1]"),
        ("deeper", "expected a backbone of resnet18, resnet34, resnet50, resnet101, got 3 blocks in layer3"),
        ("levels", "expected the masks of five levels, got 4"),
        ("no state_dict", "with a state_dict, got meta"),
        ("list", "with a state_dict, got list"),
    ],
)
def test_other_checkpoints_are_refused(solo, tmp_path, change, message) -> None:
    model, settings = solo
    weights: Any = dict(model.state_dict())
    if change == "decoupled":
        weights = {k.replace("conv_mask_list.", "conv_mask_list_x."): x for k, x in weights.items()}
    elif change == "solov2":
        weights = {k.replace("conv_mask_list.0", "conv_kernel"): x for k, x in weights.items()}
    elif change == "other":
        weights = {k.replace("mask_head", "bbox_head"): x for k, x in weights.items()}
    elif change == "missing":
        del weights["neck.lateral_convs.2.conv.bias"]
    elif change == "no conv_cls":
        weights = {k: x for k, x in weights.items() if "conv_cls" not in k}
    elif change == "unknown":
        weights["backbone.layer4.0.conv_offset.weight"] = torch.zeros(1)
    elif change == "shape":
        weights["neck.fpn_convs.1.conv.weight"] = torch.zeros(64, 64, 1, 1)
    elif change == "deeper":
        weights["backbone.layer3.2.conv1.weight"] = torch.zeros(1)
    elif change == "levels":
        weights = {k: x for k, x in weights.items() if "conv_mask_list.4" not in k}
    path = tmp_path / "a.pth"
    if change == "list":
        torch.save([1], path)
    else:
        save(model, settings, path, state_dict=None if change == "no state_dict" else weights)
        if change == "no state_dict":
            message = "with a state_dict, got message_hub, meta, optimizer"
    refused(path, message)


def test_of_solov2_the_grids_and_sizes_come_from_the_configuration() -> None:
    settings = config(18, kind="solov2_light", num_grids=[20, 16, 12, 8, 6])
    found = read_settings(settings.pretty_text, bottleneck=False, head="solov2_light")
    assert found.model["num_grids"] == [20, 16, 12, 8, 6]
    assert read_settings(None, bottleneck=False, head="solov2_light").model["max_size"] == 768
    settings.model.mask_head.mask_feature_head.norm_cfg = None
    with pytest.raises(ValueError, match=r"expected mask_head\.mask_feature_head\.norm_cfg\.type = 'GN'"):
        read_settings(settings.pretty_text, bottleneck=False, head="solov2_light")


def test_what_is_no_checkpoint_is_refused(tmp_path) -> None:
    refused(tmp_path / "absent.pth", "expected a checkpoint, got no file there")
    for name, content in (("empty.pth", b""), ("text.pth", b"no checkpoint\n"), ("zip.pth", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "expected a checkpoint of mmdetection")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("mask_head", {"strides": [4, 8, 16, 32, 64]}, "mask_head.strides = [8, 8, 16, 32, 32]"),
        ("mask_head", {"cls_down_index": 1}, "mask_head.cls_down_index = 0"),
        ("mask_head", {"norm_cfg": {"type": "GN", "num_groups": 16}}, "mask_head.norm_cfg.num_groups = 32"),
        ("neck", {"num_outs": 6}, "neck.num_outs = 5"),
        ("neck", {"add_extra_convs": "on_input"}, "neck.add_extra_convs = False"),
        ("backbone", {"dilations": [1, 1, 2, 2]}, "backbone.dilations = [1, 1, 1, 1]"),
        ("data_preprocessor", {"pad_size_divisor": 1}, "data_preprocessor.pad_size_divisor = 32"),
        ("test_cfg", {"kernel": "box"}, "its configuration cannot be used"),
    ],
)
def test_settings_without_a_counterpart_are_refused(solo, tmp_path, section, values, message) -> None:
    settings = config(18, **SMALL)
    settings.model[section].update(values)
    refused(save(solo[0], settings, tmp_path / "a.pth"), message)


def test_a_stride_in_the_other_place_is_kept_where_there_are_bottlenecks() -> None:
    settings = config(50)
    settings.model.backbone.style = "caffe"
    assert read_settings(settings.pretty_text, bottleneck=True).model["stride_in_1x1"] is True
    assert read_settings(settings.pretty_text, bottleneck=False).model["stride_in_1x1"] is False


def test_what_differs_in_training_only_is_said() -> None:
    settings = config(18)
    settings.model.mask_head.pos_scale = 0.4
    settings.model.type = "mmdet.models.detectors.SOLO"
    settings.model.mask_head.type = "mmdet.models.dense_heads.SOLOHead"
    settings.pop("test_dataloader")
    notes = read_settings(settings.pretty_text, bottleneck=False).notes
    assert notes[0] == "training would go on with mask_head.pos_scale = 0.2; it was 0.4"
    assert "800 to 1333 pixels are assumed" in notes[1]
