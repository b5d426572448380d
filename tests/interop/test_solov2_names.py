"""SOLOv2 of its first repository and of AdelaiDet: state dicts whose names are written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solo_attn.interop.mmdet import convert_checkpoint
from solo_attn.models import build_solo

SMALL = {
    "fpn_channels": 32,
    "head_channels": 32,
    "num_convs": 2,
    "kernel_channels": 32,
    "feature_channels": 32,
}


def names_of(
    model: Any, towers: dict[str, str], levels: str, last: str, parts: tuple[str, str]
) -> dict[str, str]:
    """Their names of the head's parameters by ours; a tower's groups are three modules each."""
    found = {}
    for name in model.head.state_dict():
        kind, *rest = name.split(".")
        if kind in ("category_tower", "kernel_tower"):
            group, part = divmod(int(rest[0]), 3)
            theirs = towers[kind].format(group=group, part=parts[part], place=rest[0])
        elif kind == "mask_features" and rest[0] == "levels":
            theirs = levels.format(level=rest[1], conv=rest[2], part=parts[int(rest[3])])
        elif kind == "mask_features":
            theirs = last.format(part=parts[int(rest[1])])
        else:
            theirs = towers[kind]
        found[f"head.{name}"] = f"{theirs}.{rest[-1]}"
    return found


def detectron_backbone(name: str) -> str:
    """detectron2's name of a parameter of torchvision's ResNet."""
    *path, last = name.removeprefix("backbone.body.").split(".")
    if path[0].startswith("layer"):
        path[0] = f"res{int(path[0][-1]) + 1}"
        if path[2] == "downsample":
            path[2:] = ["shortcut"] if path[3] == "0" else ["shortcut", "norm"]
    else:
        path.insert(0, "stem")
    if path[-1].startswith("bn"):
        path[-1:] = [f"conv{path[-1][-1]}", "norm"]
    return ".".join(["backbone", "bottom_up", *path, last])


def state_dicts(model: Any) -> dict[str, dict[str, Tensor]]:
    """The model's weights as both would keep them."""
    solo = names_of(
        model,
        {
            "category_tower": "bbox_head.cate_convs.{group}.{part}",
            "kernel_tower": "bbox_head.kernel_convs.{group}.{part}",
            "category_output": "bbox_head.solo_cate",
            "kernel_output": "bbox_head.solo_kernel",
        },
        "mask_feat_head.convs_all_levels.{level}.conv{conv}.{part}",
        "mask_feat_head.conv_pred.0.{part}",
        ("conv", "gn"),
    )
    adelaidet = names_of(
        model,
        {
            "category_tower": "ins_head.cate_tower.{place}",
            "kernel_tower": "ins_head.kernel_tower.{place}",
            "category_output": "ins_head.cate_pred",
            "kernel_output": "ins_head.kernel_pred",
        },
        "mask_head.convs_all_levels.{level}.conv{conv}.{part}",
        "mask_head.conv_pred.{part}",
        ("0", "1"),
    )
    for name in model.backbone.state_dict():
        ours = f"backbone.{name}"
        if name.startswith("body."):
            solo[ours], adelaidet[ours] = ours.replace("body.", ""), detectron_backbone(ours)
        else:
            _, kind, level, _, last = name.split(".")
            inner = kind == "inner_blocks"
            solo[ours] = f"neck.{'lateral' if inner else 'fpn'}_convs.{level}.conv.{last}"
            adelaidet[ours] = f"backbone.fpn_{'lateral' if inner else 'output'}{int(level) + 2}.{last}"
    weights = model.state_dict()
    return {
        "solo": {theirs: weights[ours] for ours, theirs in solo.items()},
        "adelaidet": {theirs: weights[ours] for ours, theirs in adelaidet.items()},
    }


@pytest.mark.parametrize("origin", ["solo", "adelaidet"])
def test_each_weight_comes_to_its_place(origin: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_solo(80, head="solov2_light", norm="frozen_bn", attention=None, **SMALL)
    kept = state_dicts(model)[origin]
    assert len(kept) == len(model.state_dict())
    content = {"meta": {}, "state_dict": kept} if origin == "solo" else {"model": kept, "iteration": 9}
    torch.save(content, tmp_path / "a.pth")
    done = convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.ckpt")
    found = done.model.state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, x in model.state_dict().items():
        # detectron2's networks take blue first.
        turned = origin == "adelaidet" and name == "backbone.body.conv1.weight"
        assert torch.equal(found[name], x.flip(1) if turned else x), name
    settings = done.info.model
    assert settings["head"] == "solov2_light"
    assert settings["stride_in_1x1"] == (origin == "adelaidet")
    mean = torch.tensor([123.675, 116.28, 103.53]) / 255
    torch.testing.assert_close(torch.tensor(settings["image_mean"]), mean)
    std = [1 / 255] * 3 if origin == "adelaidet" else [0.229, 0.224, 0.225]
    assert settings["image_std"] == pytest.approx(std)
    assert any("no configuration is read of" in note for note in done.notes)


def test_names_as_they_stand_in_the_files() -> None:
    """Some of them, written out: those above are made by a rule, as the translation's are."""
    torch.manual_seed(0)
    kept = state_dicts(build_solo(80, head="solov2_light", norm="frozen_bn", attention=None, **SMALL))
    assert {
        "backbone.layer1.0.downsample.1.running_mean",
        "neck.lateral_convs.3.conv.bias",
        "bbox_head.cate_convs.1.gn.bias",
        "bbox_head.solo_kernel.weight",
        "mask_feat_head.convs_all_levels.3.conv2.conv.weight",
        "mask_feat_head.conv_pred.0.gn.weight",
    } <= kept["solo"].keys()
    assert {
        "backbone.bottom_up.stem.conv1.norm.weight",
        "backbone.bottom_up.res2.0.shortcut.norm.running_mean",
        "backbone.bottom_up.res5.2.conv3.weight",
        "backbone.fpn_lateral5.bias",
        "ins_head.kernel_tower.4.weight",
        "ins_head.cate_pred.bias",
        "mask_head.convs_all_levels.0.conv0.1.bias",
        "mask_head.conv_pred.0.weight",
    } <= kept["adelaidet"].keys()
