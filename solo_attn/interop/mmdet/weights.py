"""The weights of mmdetection's SOLO family under this library's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...models.settings import OF_HEADS
from .settings import UnsuitableError

# Blocks of layer3, with and without a third convolution.
_RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}

# Of each group [convolution, GroupNorm, ReLU] in a tower.
_PLACE = {"conv": 0, "gn": 1}

_FEATURES = "mask_head.mask_feature_head"
_TOWERS = {
    "cls_convs": "category_tower",
    "mask_convs": "mask_tower",
    "mask_convs_x": "column_tower",
    "mask_convs_y": "row_tower",
    "kernel_convs": "kernel_tower",
}
_OUTPUTS = {
    "conv_cls": "category_output",
    "conv_mask_list": "mask_outputs",
    "conv_mask_list_x": "column_outputs",
    "conv_mask_list_y": "row_outputs",
    "conv_kernel": "kernel_output",
}


def architecture(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `build_solo` that the shapes of the weights decide.

    Raises:
        UnsuitableError: another detector, or weights are missing.
    """
    convs = _count(weights, r"mask_head\.cls_convs\.(\d+)\.")
    head = _head(weights, convs)
    blocks = {m[1] for name in weights if (m := re.match(r"backbone\.layer3\.(\d+)\.conv1\.weight$", name))}
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    backbone = _RESNETS.get((len(blocks), bottleneck))
    if backbone is None:
        raise UnsuitableError(
            f"expected a backbone of {', '.join(_RESNETS.values())}, got {len(blocks)} blocks in layer3, "
            f"{'with' if bottleneck else 'without'} bottlenecks"
        )
    found: dict[str, Any] = {}
    if head.startswith("solov2"):
        found["kernel_channels"] = _shape(weights, "mask_head.conv_kernel.weight")[0]
        found["feature_channels"] = _shape(weights, f"{_FEATURES}.conv_pred.conv.weight")[1]
    else:
        found["num_grids"] = _sides(weights, "_x" if head.startswith("decoupled") else "")
    return {
        "head": head,
        "num_classes": _shape(weights, "mask_head.conv_cls.weight")[0],
        "backbone": backbone,
        "fpn_channels": _shape(weights, "neck.fpn_convs.0.conv.weight")[0],
        "head_channels": _shape(weights, "mask_head.conv_cls.weight")[1],
        "num_convs": convs,
        "deformable": _deformable(weights, convs),
        "deformable_backbone": "backbone.layer2.0.conv2.conv_offset.weight" in weights,
        **found,
    }


def _head(weights: Mapping[str, Tensor], convs: int) -> str:
    """Which of this library's heads."""
    if any(name.startswith("mask_head.conv_kernel.") for name in weights):
        return "solov2" if convs >= OF_HEADS["solov2"]["num_convs"] else "solov2_light"
    if any(name.startswith("mask_head.conv_mask_list_x.") for name in weights):
        return "decoupled" if "mask_head.mask_convs_x.0.conv.weight" in weights else "decoupled_light"
    if any(name.startswith("mask_head.conv_mask_list.") for name in weights):
        return "solo"
    raise UnsuitableError(
        "expected a detector of mmdetection 3.x: SOLO, Decoupled SOLO or SOLOv2, with weights named "
        f"mask_head.conv_mask_list..., mask_head.conv_mask_list_x... or mask_head.conv_kernel..., got "
        f"{_some(weights)}"
    )


def _sides(weights: Mapping[str, Tensor], axis: str) -> list[int]:
    """S of each level, of as many outputs of the masks, or of their square."""
    levels = _count(weights, rf"mask_head\.conv_mask_list{axis}\.(\d+)\.")
    if levels != 5:
        raise UnsuitableError(f"expected the masks of five levels, got {levels}")
    counts = [_shape(weights, f"mask_head.conv_mask_list{axis}.{k}.weight")[0] for k in range(levels)]
    return counts if axis else [math.isqrt(count) for count in counts]


def _deformable(weights: Mapping[str, Tensor], convs: int) -> str | None:
    """Which convolutions of the head are."""
    if f"{_FEATURES}.conv_pred.conv.conv_offset.weight" in weights:
        return "all"
    if "mask_head.cls_convs.0.conv.conv_offset.weight" in weights:
        return "towers"
    return "last" if f"mask_head.cls_convs.{convs - 1}.conv.conv_offset.weight" in weights else None


def translate(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], bgr: bool) -> dict[str, Tensor]:
    """The weights by this library's names.

    Args:
        weights: mmdetection's.
        expected: this library's state dict of the same architecture.
        bgr: the first convolution takes blue first; what is returned takes red first.

    Raises:
        UnsuitableError: weights are missing, unknown or of another shape.
    """
    # Counters of training batches say nothing here; frozen statistics have none.
    given = {name: x for name, x in weights.items() if not name.endswith(".num_batches_tracked")}
    renamed = {own_name(name): name for name in given}
    missing = [name for name in expected if name not in renamed]
    unknown = [name for ours, name in renamed.items() if ours not in expected]
    if missing:
        raise UnsuitableError(f"expected all weights of the model, got none for {_some(missing)}")
    if unknown:
        raise UnsuitableError(f"expected no other weights than the model's, got {_some(unknown)}")
    for ours, name in renamed.items():
        if given[name].shape != expected[ours].shape:
            raise UnsuitableError(
                f"expected {name} of shape {list(expected[ours].shape)}, got {list(given[name].shape)}"
            )
    found = {ours: given[renamed[ours]].clone() for ours in expected}
    if bgr:
        found["backbone.body.conv1.weight"] = found["backbone.body.conv1.weight"].flip(1)
    return found


def own_name(name: str) -> str:
    """This library's name of a parameter of mmdetection's; others stay as they are."""
    if match := re.match(r"backbone\.(.+)", name):
        return f"backbone.body.{match[1]}"
    if match := re.match(r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(.+)", name):
        kind = "inner" if match[1] == "lateral" else "layer"
        return f"backbone.fpn.{kind}_blocks.{match[2]}.0.{match[3]}"
    if match := re.match(r"mask_head\.(\w+_convs(?:_\w)?)\.(\d+)\.(conv|gn)\.(.+)", name):
        tower = _TOWERS.get(match[1], match[1])
        return f"head.{tower}.{3 * int(match[2]) + _PLACE[match[3]]}.{match[4]}"
    if match := re.match(_FEATURES + r"\.convs_all_levels\.(\d)\.conv(\d)\.(conv|gn)\.(.+)", name):
        return f"head.mask_features.levels.{match[1]}.{match[2]}.{_PLACE[match[3]]}.{match[4]}"
    if match := re.match(_FEATURES + r"\.conv_pred\.(conv|gn)\.(.+)", name):
        return f"head.mask_features.output.{_PLACE[match[1]]}.{match[2]}"
    if match := re.match(r"mask_head\.(\w+)\.(.+)", name):
        return f"head.{_OUTPUTS.get(match[1], match[1])}.{match[2]}"
    return name


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _shape(weights: Mapping[str, Tensor], name: str) -> list[int]:
    if name not in weights:
        raise UnsuitableError(f"expected all weights of the model, got none for {name}")
    return list(weights[name].shape)


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "no weights"
