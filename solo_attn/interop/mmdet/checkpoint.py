"""mmdetection's checkpoints of the SOLO family into this library's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ...models import SOLO, CheckpointError, ModelInfo, build_solo, save_model
from .names import mmdet_names
from .settings import UnsuitableError, read_settings
from .weights import architecture, translate

# COCO's 80 categories have the ids 1 to 90 less these.
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` made.

    Attributes:
        model: in evaluation mode.
        info: what the written file says of the model.
        notes: what was assumed, or would be different in training; for the user to read.
    """

    model: SOLO
    info: ModelInfo
    notes: list[str]


def convert_checkpoint(checkpoint: str | Path, out: str | Path | None = None) -> Conversion:
    """Read a checkpoint of mmdetection 3.x; needs no mmdetection, and safetensors only to write it.

    SOLO, Decoupled SOLO, SOLOv2 and their light heads, with or without DCNv2, over ResNet-18, 34, 50 and 101
    with FPN; any number of classes, grids and channels. SOLOv2 of its first repository and of AdelaiDet too,
    where no convolution is deformable. Settings come from the
    configuration that mmengine stores in the file. Nothing in the file is run: its tensors and plain values
    are read, objects of other classes, such as the training's logs, are left out.

    Args:
        checkpoint: the ``.pth`` file.
        out: where to write what `solo_attn.models.load_model` reads, ``.ckpt`` or ``.safetensors``; None
            writes nothing.

    Raises:
        CheckpointError: no such file, no checkpoint, another detector, missing weights, or settings that
            this library has no counterpart of.
        OSError: ``out`` cannot be written.
    """
    path = Path(checkpoint)
    try:
        content = _read(path)
        weights, meta = _parts(content)
        weights, origin = mmdet_names(weights)
        shape = architecture(weights)
        text = meta.get("cfg")
        settings = read_settings(
            text if isinstance(text, str) else None,
            shape["backbone"] in ("resnet50", "resnet101"),
            shape["head"],
            origin,
        )
        try:
            model = build_solo(**shape, **settings.model)
        except (ValueError, TypeError) as error:
            raise UnsuitableError(f"its configuration cannot be used: {error}") from error
        model.load_state_dict(translate(weights, model.state_dict(), settings.bgr))
    except UnsuitableError as error:
        raise CheckpointError(f"convert mmdet: {path}: {error}") from error
    names, notes = _class_names(meta, shape["num_classes"])
    info = ModelInfo(model.config, names, _category_ids(names), {})
    if out is not None:
        save_model(model, info, out)
    return Conversion(model.eval(), info, [*settings.notes, *notes])


class _LeftOut:
    """In the place of objects of other classes; keeps nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _LeftOut:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UnsuitableError("expected a checkpoint, got no file there")
    others: list[str] = []
    with suppress(Exception):  # what is no checkpoint fails below, with a reason
        others = get_unsafe_globals_in_checkpoint(path)
    try:
        with safe_globals([(_LeftOut, name) for name in others]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if isinstance(error, UnpicklingError):  # whose advice is to let the file run code
            reason = "what it holds cannot be read without running code from it"
            if others:
                reason += (
                    f" ({', '.join(sorted(others)[:3])}); mmdetection's publish_model.py leaves that out"
                )
        raise UnsuitableError(f"expected a checkpoint of mmdetection; {reason}") from error


def _parts(content: Any) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """``state_dict`` and ``meta``."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict) and "state_dict" not in content:
        content = {"state_dict": content["model"]}  # as detectron2 keeps it
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        found = (
            ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
        )
        raise UnsuitableError(
            f"expected a checkpoint of mmdetection with a state_dict, got {found or 'nothing'}"
        )
    weights = {str(name): x for name, x in content["state_dict"].items() if isinstance(x, Tensor)}
    meta = content.get("meta")
    return weights, meta if isinstance(meta, dict) else {}


def _class_names(meta: Mapping[str, Any], count: int) -> tuple[list[str], list[str]]:
    """Names by label, and notes; mmengine writes them as ``classes``, earlier versions as ``CLASSES``."""
    for place in (meta.get("dataset_meta"), meta):
        for key in ("classes", "CLASSES"):
            names = place.get(key) if isinstance(place, dict) else None
            if isinstance(names, str):
                names = [names]
            if isinstance(names, (list, tuple)) and len(names) == count:
                return [str(name) for name in names], []
    return [str(label) for label in range(count)], [f"no names of its {count} classes in the file: numbered"]


def _category_ids(names: list[str]) -> list[int]:
    """COCO's own ids for COCO's classes, else 1, 2, ..., as mmdetection keeps no ids."""
    if len(names) == 80 and (names[0], names[-1]) == ("person", "toothbrush"):
        return [number for number in range(1, 91) if number not in _COCO_GAPS]
    return list(range(1, len(names) + 1))
