"""Checkpoints that are written completely or not at all, hold plain data only, and can rebuild the model."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from .._utils.checks import is_integer
from .._utils.errors import SoloAttnError, extra_needed
from .._utils.files import write_durably
from .._utils.limits import PREFIX as PREFIX_OF_LIMITS
from .._utils.limits import limits
from .._utils.readers import one_line
from .._utils.text import name_fault, shown
from .solo import SOLO, build_solo

KEY = "solo_attn"
PREFIX = "model."


class CheckpointError(SoloAttnError, ValueError):
    """A file that is not a usable checkpoint: names the file, what was expected and what was given."""


@dataclass
class ModelInfo:
    """What a checkpoint holds beside the weights.

    Attributes:
        model: the arguments of `solo_attn.models.build_solo`.
        class_names: by label.
        category_ids: the COCO category of each label.
        config: the whole training configuration (`Config.as_dict`).
    """

    model: dict[str, Any]
    class_names: list[str]
    category_ids: list[int]
    config: dict[str, Any]

    @property
    def categories(self) -> dict[int, str]:
        """COCO's category ids and their names."""
        return dict(zip(self.category_ids, self.class_names, strict=True))


def write_info(checkpoint: dict[str, Any], info: ModelInfo) -> None:
    """Put ``info`` into a checkpoint's dict."""
    checkpoint[KEY] = asdict(info)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[SOLO, ModelInfo]:
    """The model of a ``.ckpt`` or ``.safetensors`` file, in evaluation mode.

    Unpickles only tensors and plain types, so an untrusted file cannot run code.

    Raises:
        CheckpointError: no such file, another kind of file, or weights that do not fit their own settings.
    """
    path = Path(path)
    weights, info = read_checkpoint(path)
    _refuse_huge(info.model, path)
    # The weights are in the file: do not download others first.
    settings = {**info.model, "pretrained": False}
    try:
        # On "meta" first, without memory: the file may ask for any size.
        with torch.device("meta"):
            planned = build_solo(**settings).state_dict()
    except SoloAttnError:
        raise  # a package that is missing
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: {path} was written by another version: {one_line(error)}"
        ) from error
    if fault := _unfit(planned, weights):
        raise CheckpointError(f"checkpoint: {path} does not fit its own settings: {fault}")
    model = build_solo(**settings)
    model.settings.pretrained = info.model.get("pretrained", False)
    try:
        model.load_state_dict(weights)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: {path} does not fit its own settings: {one_line(error)}"
        ) from error
    return model.to(device).eval(), info


def _refuse_huge(settings: dict[str, Any], path: Path) -> None:
    """Refuse settings of any kind that would take too much time or memory."""
    classes, grids = settings.get("num_classes"), settings.get("num_grids", ())
    cells = sum(side**2 for side in grids if is_integer(side, 1)) if isinstance(grids, (list, tuple)) else 0
    asked = {
        "model_layers": settings.get("num_convs"),
        "model_scores": cells * classes if is_integer(classes, 1) else None,
        "image_pixels": side**2 if is_integer(side := settings.get("max_size"), 1) else None,
    }
    for name, value in asked.items():
        most = getattr(limits, name)
        if is_integer(value, most + 1):
            raise CheckpointError(
                f"checkpoint: expected {path} to ask for at most {most} {name.replace('_', ' ')} "
                f"({PREFIX_OF_LIMITS}{name.upper()}), got {shown(value)}"
            )


def _unfit(planned: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> str | None:
    """Why ``weights`` do not fit a model whose state, on "meta", is ``planned``, or None."""
    count = sum(tensor.numel() for tensor in planned.values())
    if count > limits.model_parameters:
        most = f"{limits.model_parameters} numbers ({PREFIX_OF_LIMITS}MODEL_PARAMETERS)"
        return f"expected at most {most}, got {count}"
    for what, names in (("has no", planned.keys() - weights), ("has an unknown", weights.keys() - planned)):
        if names:
            return f"it {what} {shown(min(names))} ({len(names)} in all)"
    for name, wanted in planned.items():
        got = weights[name]
        if not isinstance(got, torch.Tensor) or got.layout != torch.strided or got.is_nested:
            return f"expected {name} to be a dense tensor, got {shown(got)}"
        if got.shape != wanted.shape or got.is_floating_point() != wanted.is_floating_point():
            have = f"{str(got.dtype).removeprefix('torch.')} {list(got.shape)}"
            need = f"{str(wanted.dtype).removeprefix('torch.')} {list(wanted.shape)}"
            return f"expected {name} to be {need}, got {have}"
    return None


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """Weights of a ``.ckpt`` or ``.safetensors`` file by the model's names, and its description of the model.

    Raises:
        CheckpointError: no such file, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint: expected a .ckpt or .safetensors file, got {path}, which is not there"
        )
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)


def export_safetensors(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the weights of a checkpoint as safetensors, with `ModelInfo` as JSON in its metadata.

    Raises:
        CheckpointError: see `load_model`.
    """
    model, info = load_model(checkpoint)
    write_durably(out, _safetensors(model, info))
    return Path(out)


def save_model(model: SOLO, info: ModelInfo, out: str | Path) -> None:
    """Write what `load_model` reads: safetensors where ``out`` ends so, else a checkpoint without a training.

    Raises:
        OSError: ``out`` cannot be written.
    """
    if Path(out).suffix == ".safetensors":
        write_durably(out, _safetensors(model, info))
        return
    content: dict[str, Any] = {
        "state_dict": {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    }
    write_info(content, info)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_durably(out, buffer.getbuffer())


def _safetensors(model: SOLO, info: ModelInfo) -> bytes:
    with extra_needed("a .safetensors file"):
        from safetensors.torch import save as to_safetensors

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return to_safetensors(weights, {KEY: json.dumps(asdict(info))})


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    checkpoint = read_plain(path)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(PREFIX)
    }
    return weights, _info(checkpoint[KEY], path)


def read_plain(path: str | Path) -> dict[str, Any]:
    """The content of a ``.ckpt``: tensors and plain data only, with ``state_dict`` and `ModelInfo`.

    Raises:
        CheckpointError: no such file, or another kind of file.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A file that is no checkpoint can raise anything in the unpickler, KeyError and IndexError too.
        reason = one_line(error)
        if isinstance(error, UnpicklingError):  # whose advice is to let the file run code
            reason = "no file of tensors and plain data"
        raise CheckpointError(
            f"checkpoint: {path} cannot be read: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        found = (
            sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        )
        raise CheckpointError(f"checkpoint: expected {path} to be written by solo-attn train, got {found}")
    state = checkpoint["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"checkpoint: expected state_dict of {path} to be a dict of names and tensors, got "
            f"{type(state).__name__}" + (" with other keys" if isinstance(state, dict) else "")
        )
    return checkpoint


def info_of(checkpoint: dict[str, Any], path: str | Path) -> ModelInfo:
    """`ModelInfo` of what `read_plain` has read from ``path``.

    Raises:
        CheckpointError: it does not have the form of `ModelInfo`.
    """
    return _info(checkpoint[KEY], path)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    with extra_needed("a .safetensors file"):
        from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read: {one_line(error)}") from error
    if KEY not in metadata:
        raise CheckpointError(
            f"checkpoint: expected {path} to carry {KEY!r} in its metadata (export_safetensors writes it), "
            f"got {sorted(metadata)}"
        )
    try:
        values = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint: expected {KEY!r} of {path} to be JSON: {error}") from error
    return weights, _info(values, path)


def _info(values: Any, path: str | Path) -> ModelInfo:
    try:
        info = ModelInfo(**values)
    except TypeError as error:
        raise CheckpointError(
            f"checkpoint: {path} was written by another version: {one_line(error)}"
        ) from error
    if fault := _info_fault(info):
        raise CheckpointError(f"checkpoint: {path} was not written by this library: {fault}")
    return info


def _info_fault(info: ModelInfo) -> str | None:
    for name in ("model", "config"):
        value = getattr(info, name)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return f"expected {name} to hold settings by name, got {shown(value)}"
    for section, values in info.config.items():
        if not isinstance(values, dict):
            return f"expected config.{shown(section)} to hold settings by name, got {shown(values)}"
    for name in ("class_names", "category_ids"):
        value = getattr(info, name)
        if not isinstance(value, list) or len(value) != info.model.get("num_classes"):
            return (
                f"expected {name} to be a list of num_classes = {shown(info.model.get('num_classes'))} "
                + (f"entries, got {len(value) if isinstance(value, list) else shown(value)}")
            )
    if fault := next(filter(None, map(name_fault, info.class_names)), None):
        return fault
    wrong = [k for k in info.category_ids if not is_integer(k, -(2**63)) or k >= 2**63]
    return f"expected category_ids of 64 bits, got {shown(wrong[0])}" if wrong else None
