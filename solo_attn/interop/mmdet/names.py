"""SOLOv2 of its first repository (WXinlong/SOLO) and of AdelaiDet, whose networks have other names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Rules = tuple[tuple[str, str], ...]

_FEATURES = r"mask_head.mask_feature_head"

# Of its time: mmdetection 1.x calls backbone and neck as mmdetection 3.x does.
SOLO: Rules = (
    (r"bbox_head\.cate_convs\.", "mask_head.cls_convs."),
    (r"bbox_head\.kernel_convs\.", "mask_head.kernel_convs."),
    (r"bbox_head\.solo_cate\.", "mask_head.conv_cls."),
    (r"bbox_head\.solo_kernel\.", "mask_head.conv_kernel."),
    (r"mask_feat_head\.conv_pred\.0\.", f"{_FEATURES}.conv_pred."),
    (r"mask_feat_head\.", f"{_FEATURES}."),
)

# Of detectron2: stages are counted from 2, and norms lie in their convolutions.
ADELAIDET: Rules = (
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"backbone\.bottom_up\.stem\.conv1\.", "backbone.conv1."),
    (
        r"backbone\.bottom_up\.res(?P<stage>\d)\.(\d+)\.shortcut\.norm\.",
        r"backbone.layer{stage}.\2.downsample.1.",
    ),
    (r"backbone\.bottom_up\.res(?P<stage>\d)\.(\d+)\.shortcut\.", r"backbone.layer{stage}.\2.downsample.0."),
    (r"backbone\.bottom_up\.res(?P<stage>\d)\.(\d+)\.conv(\d)\.norm\.", r"backbone.layer{stage}.\2.bn\3."),
    (r"backbone\.bottom_up\.res(?P<stage>\d)\.(\d+)\.conv(\d)\.", r"backbone.layer{stage}.\2.conv\3."),
    (r"backbone\.fpn_lateral(?P<level>\d)\.", "neck.lateral_convs.{level}.conv."),
    (r"backbone\.fpn_output(?P<level>\d)\.", "neck.fpn_convs.{level}.conv."),
    (r"ins_head\.cate_tower\.(?P<place>\d+)\.", "mask_head.cls_convs.{place}."),
    (r"ins_head\.kernel_tower\.(?P<place>\d+)\.", "mask_head.kernel_convs.{place}."),
    (r"ins_head\.cate_pred\.", "mask_head.conv_cls."),
    (r"ins_head\.kernel_pred\.", "mask_head.conv_kernel."),
    (
        r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.(?P<part>[01])\.",
        _FEATURES + r".convs_all_levels.\1.conv\2.{part}.",
    ),
    (r"mask_head\.conv_pred\.(?P<part>[01])\.", _FEATURES + ".conv_pred.{part}."),
)
_PARTS = ("conv", "gn")


class Origin(NamedTuple):
    """Where weights come from.

    Attributes:
        name: for messages, "" for mmdetection 3.x.
        stride_in_1x1: bottlenecks have their stride in the first convolution, as detectron2's do.
        raw_pixels: the network takes blue first, in 0..255 less the mean, as detectron2's do.
    """

    name: str = ""
    stride_in_1x1: bool = False
    raw_pixels: bool = False


def mmdet_names(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Origin]:
    """The weights under mmdetection 3.x's names, whose own stay as they are."""
    if any(name.startswith("ins_head.kernel_pred.") for name in weights):
        # What detectron2 keeps beside weights: the pixels' mean and deviation.
        given = {name: x for name, x in weights.items() if name not in ("pixel_mean", "pixel_std")}
        renamed = {_renamed(name, ADELAIDET): x for name, x in given.items()}
        return renamed, Origin("AdelaiDet", stride_in_1x1=True, raw_pixels=True)
    if any(name.startswith("bbox_head.solo_kernel.") for name in weights):
        return {_renamed(name, SOLO): x for name, x in weights.items()}, Origin("WXinlong/SOLO")
    return dict(weights), Origin()


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        if match := re.match(pattern, name):
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            values: dict[str, object] = {
                "stage": numbers.get("stage", 1) - 1,
                "level": numbers.get("level", 2) - 2,
                "part": _PARTS[numbers.get("part", 0)],
            }
            if "place" in numbers:  # convolution, norm and ReLU follow each other
                group, part = divmod(numbers["place"], 3)
                values["place"] = f"{group}.{_PARTS[part]}"
            return match.expand(replacement).format(**values) + name[match.end() :]
    return name
