"""What an mmdetection configuration says about a model of the SOLO family, in this library's terms."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...models.settings import OF_HEADS
from .names import Origin

# Of mmdetection's configs/solo and configs/solov2; light heads take smaller images.
PUBLISHED: dict[str, Any] = {
    "coords": "inclusive",
    "attention": None,
    "norm": "frozen_bn",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "min_size": 800,
    "max_size": 1333,
}
_NO_LIMIT = 1 << 30

# (key, what this library does, mmdetection's default): predictions would be others.
_FIXED: tuple[tuple[str, Any, Any], ...] = (
    ("backbone.strides", [1, 2, 2, 2], [1, 2, 2, 2]),
    ("backbone.dilations", [1, 1, 1, 1], [1, 1, 1, 1]),
    ("neck.num_outs", 5, None),
    ("neck.start_level", 0, 0),
    ("neck.add_extra_convs", False, False),
    ("backbone.dcn.type", "DCNv2", "DCNv2"),
    ("mask_head.strides", [8, 8, 16, 32, 32], [4, 8, 16, 32, 64]),
    ("mask_head.cls_down_index", 0, 0),
    ("mask_head.norm_cfg.type", "GN", "GN"),
    ("mask_head.norm_cfg.num_groups", 32, 32),
    ("mask_head.dcn_cfg.type", "DCNv2", "DCNv2"),
    ("data_preprocessor.pad_size_divisor", 32, 1),
)
_FEATURES = "mask_head.mask_feature_head"
_FIXED_IN_SOLOV2: tuple[tuple[str, Any, Any], ...] = (
    ("mask_head.dynamic_conv_size", 1, 1),
    (f"{_FEATURES}.start_level", 0, None),
    (f"{_FEATURES}.end_level", 3, None),
    (f"{_FEATURES}.mask_stride", 4, 4),
    (f"{_FEATURES}.norm_cfg.type", "GN", None),
    (f"{_FEATURES}.norm_cfg.num_groups", 32, None),
)
# The same, but only training would be another.
_FIXED_IN_TRAINING: tuple[tuple[str, Any, Any], ...] = (
    ("mask_head.pos_scale", 0.2, 0.2),
    ("mask_head.loss_mask.eps", 1e-3, 1e-3),
    ("mask_head.loss_mask.naive_dice", False, False),
    ("mask_head.loss_cls.type", "FocalLoss", "FocalLoss"),
    ("mask_head.loss_cls.gamma", 2.0, 2.0),
    ("mask_head.loss_cls.alpha", 0.25, 0.25),
    ("mask_head.loss_cls.loss_weight", 1.0, 1.0),
)


TYPES = {
    "solo": "SOLOHead",
    "decoupled": "DecoupledSOLOHead",
    "decoupled_light": "DecoupledSOLOLightHead",
    "solov2": "SOLOV2Head",
    "solov2_light": "SOLOV2Head",
}
"""mmdetection's names of this library's heads."""


class UnsuitableError(ValueError):
    """A checkpoint that has no counterpart here; the message says why."""


class Settings(NamedTuple):
    """Settings of a model.

    Attributes:
        model: arguments of `build_solo` that the configuration decides.
        bgr: the network takes blue first.
        notes: what the user should know.
    """

    model: dict[str, Any]
    bgr: bool
    notes: list[str]


def read_settings(
    text: str | None, bottleneck: bool, head: str = "solo", origin: Origin | None = None
) -> Settings:
    """Settings from ``meta["cfg"]``, the Python text of the configuration; without it, the published ones.

    Args:
        text: parsed, never run.
        bottleneck: whether the backbone has some, inside of which a stride may be in either place.
        head: this library's name of what the weights are of.
        origin: whose weights they are; mmdetection's by default.

    Raises:
        UnsuitableError: a setting that this library has no counterpart of.
    """
    config = _parse(text) if text else {}
    model = config.get("model")
    published = PUBLISHED | {key: x for key, x in OF_HEADS[head].items() if key in ("min_size", "max_size")}
    if origin is not None and origin.name:
        settings = {**published, "stride_in_1x1": bottleneck and origin.stride_in_1x1}
        if origin.raw_pixels:
            settings["image_std"] = [1 / 255] * 3
        note = (
            f"no configuration is read of {origin.name}'s files: grids, thresholds and sizes are SOLOv2's own"
        )
        return Settings(settings, origin.raw_pixels, [note])
    if not isinstance(model, dict):
        folder = "solov2" if head.startswith("solov2") else "solo"
        return Settings(
            published,
            False,
            [f"no configuration in the file: the settings of mmdetection's configs/{folder} are assumed"],
        )
    fixed = [*_FIXED, ("mask_head.type", TYPES[head], None)]
    for key, ours, default in [*fixed, *(_FIXED_IN_SOLOV2 if head.startswith("solov2") else ())]:
        value = _get(model, key, default)
        if key.endswith(".type"):
            value = str(value).rpartition(".")[2]  # new-style configurations name the module too
        if value != ours:
            raise UnsuitableError(f"expected {key} = {ours!r}, which this library is made for, got {value!r}")
    notes = [
        f"training would go on with {key} = {ours!r}; it was {_get(model, key, default)!r}"
        for key, ours, default in _FIXED_IN_TRAINING
        if _get(model, key, default) != ours
    ]
    settings = {**published, **_head(model.get("mask_head", {})), **_inference(model.get("test_cfg") or {})}
    if head.startswith("solov2"):  # of whose weights none is of the grid's size
        settings["num_grids"] = _get(model, "mask_head.num_grids", None) or [40, 36, 24, 16, 12]
    settings["stride_in_1x1"] = bottleneck and _get(model, "backbone.style", "pytorch") == "caffe"
    bgr = _normalisation(model.get("data_preprocessor") or {}, settings)
    if (size := _test_size(config)) is not None:
        settings["min_size"], settings["max_size"] = min(size), max(size)
    else:
        low, high = published["min_size"], published["max_size"]
        notes.append(f"no size of test images in the configuration: {low} to {high} pixels are assumed")
    return Settings(settings, bgr, notes)


def _head(head: Mapping[str, Any]) -> dict[str, Any]:
    ranges = head.get("scale_ranges", [[8, 32], [16, 64], [32, 128], [64, 256], [128, 512]])
    return {
        "scale_ranges": [list(pair) for pair in ranges],
        "mask_loss_weight": float(_get(head, "loss_mask.loss_weight", 3.0)),
    }


def _inference(test: Mapping[str, Any]) -> dict[str, Any]:
    """mmdetection switches a limit off by -1."""
    names = {
        "score_thr": "score_threshold",
        "mask_thr": "mask_threshold",
        "nms_pre": "nms_pre",
        "kernel": "nms_kernel",
        "sigma": "nms_sigma",
        "filter_thr": "final_score_threshold",
        "max_per_img": "max_detections",
    }
    found = {ours: test[theirs] for theirs, ours in names.items() if theirs in test}
    for limit in ("nms_pre", "max_detections"):
        if found.get(limit, 1) <= 0:
            found[limit] = _NO_LIMIT
    if found.get("final_score_threshold", 0) < 0:
        found["final_score_threshold"] = 0.0
    return found


def _normalisation(preprocessor: Mapping[str, Any], settings: dict[str, Any]) -> bool:
    """Put mean and deviation of 0..1 images, red first, into ``settings``; True where blue comes first."""
    mean, std = preprocessor.get("mean") or [0.0] * 3, preprocessor.get("std") or [1.0] * 3
    # Images are read blue first; either option turns them round.
    bgr = not (preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr"))
    step = -1 if bgr else 1
    settings["image_mean"] = [round(v / 255, 12) for v in mean][::step]
    settings["image_std"] = [round(v / 255, 12) for v in std][::step]
    return bgr


def _test_size(config: Mapping[str, Any]) -> list[int] | None:
    pipeline = _get(config, "test_dataloader.dataset.pipeline", None) or config.get("test_pipeline") or []
    for step in pipeline:
        kind = str(step.get("type")).rpartition(".")[2] if isinstance(step, dict) else ""
        scale = step.get("scale") if kind == "Resize" and step.get("keep_ratio") else None
        if isinstance(scale, list) and len(scale) == 2:
            return [int(v) for v in scale]
    return None


def _get(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """The entry at a path such as "mask_head.norm_cfg.type"."""
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return default
        values = values[name]
    return values


def _parse(text: str) -> dict[str, Any]:
    """The assignments of a configuration's text; those that are no plain values are None."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UnsuitableError(
            f"expected meta['cfg'] to be the text of a configuration, got {error}"
        ) from error
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _value(node.value)
    return found


def _value(node: ast.expr) -> Any:
    """Numbers, texts, lists (tuples too) and dicts, also such as ``dict(type="SOLO")``."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _value(key): _value(item)
            for key, item in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg is not None}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return None
