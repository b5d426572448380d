"""The weights of mmdetection's SOLO under this library's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .settings import UnsuitableError

# Blocks of layer3, with and without a third convolution.
_RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}

# Of each group [convolution, GroupNorm, ReLU] in a tower.
_PLACE = {"conv": 0, "gn": 1}


def architecture(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `build_solo` that the shapes of the weights decide.

    Raises:
        UnsuitableError: another detector, or weights are missing.
    """
    if "mask_head.conv_mask_list_x.0.weight" in weights:
        raise UnsuitableError(
            "expected a SOLO detector, got a Decoupled SOLO: its masks are products of two maps"
        )
    if any(name.startswith(("mask_head.conv_kernel.", "mask_head.mask_feature_head.")) for name in weights):
        raise UnsuitableError(
            "expected a SOLO detector, got a SOLOv2: its masks are made by predicted kernels"
        )
    if not any(name.startswith("mask_head.conv_mask_list.") for name in weights):
        raise UnsuitableError(
            "expected a SOLO detector of mmdetection 3.x, with weights named mask_head.conv_mask_list..., "
            f"got {_some(weights)}"
        )
    blocks = {m[1] for name in weights if (m := re.match(r"backbone\.layer3\.(\d+)\.conv1\.weight$", name))}
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    backbone = _RESNETS.get((len(blocks), bottleneck))
    if backbone is None:
        raise UnsuitableError(
            f"expected a backbone of {', '.join(_RESNETS.values())}, got {len(blocks)} blocks in layer3, "
            f"{'with' if bottleneck else 'without'} bottlenecks"
        )
    sides = []
    for level in range(_count(weights, r"mask_head\.conv_mask_list\.(\d+)\.")):
        cells = _shape(weights, f"mask_head.conv_mask_list.{level}.weight")[0]
        sides.append(math.isqrt(cells))
    if len(sides) != 5:
        raise UnsuitableError(f"expected the masks of five levels, got {len(sides)}")
    return {
        "num_classes": _shape(weights, "mask_head.conv_cls.weight")[0],
        "backbone": backbone,
        "fpn_channels": _shape(weights, "neck.fpn_convs.0.conv.weight")[0],
        "head_channels": _shape(weights, "mask_head.conv_cls.weight")[1],
        "num_convs": _count(weights, r"mask_head\.cls_convs\.(\d+)\."),
        "num_grids": sides,
    }


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
    renamed = {_rename(name): name for name in given}
    missing = [name for name in expected if name not in renamed]
    unknown = [name for ours, name in renamed.items() if ours not in expected]
    if missing:
        raise UnsuitableError(f"expected all weights of the model, got none for {_some(missing)}")
    if unknown:
        raise UnsuitableError(f"expected no other weights than SOLO's, got {_some(unknown)}")
    for ours, name in renamed.items():
        if given[name].shape != expected[ours].shape:
            raise UnsuitableError(
                f"expected {name} of shape {list(expected[ours].shape)}, got {list(given[name].shape)}"
            )
    found = {ours: given[renamed[ours]].clone() for ours in expected}
    if bgr:
        found["backbone.body.conv1.weight"] = found["backbone.body.conv1.weight"].flip(1)
    return found


def _rename(name: str) -> str:
    if match := re.match(r"backbone\.(.+)", name):
        return f"backbone.body.{match[1]}"
    if match := re.match(r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(.+)", name):
        kind = "inner" if match[1] == "lateral" else "layer"
        return f"backbone.fpn.{kind}_blocks.{match[2]}.0.{match[3]}"
    if match := re.match(r"mask_head\.(mask|cls)_convs\.(\d+)\.(conv|gn)\.(.+)", name):
        tower = "mask" if match[1] == "mask" else "category"
        return f"head.{tower}_tower.{3 * int(match[2]) + _PLACE[match[3]]}.{match[4]}"
    if match := re.match(r"mask_head\.conv_mask_list\.(.+)", name):
        return f"head.mask_outputs.{match[1]}"
    if match := re.match(r"mask_head\.conv_cls\.(.+)", name):
        return f"head.category_output.{match[1]}"
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
