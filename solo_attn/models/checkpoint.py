"""Checkpoints that a kill cannot break, that hold plain data only, and that know how to rebuild the model."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from .._utils.errors import SoloAttnError, extra_train
from .._utils.files import write_durably
from .solo import SOLO, build_solo

KEY = "solo_attn"
PREFIX = "model."


class CheckpointError(SoloAttnError, ValueError):
    """A file that is not a usable checkpoint: says which, what was expected and what came."""


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


def write_info(checkpoint: dict[str, Any], info: ModelInfo) -> None:
    """Put ``info`` into a checkpoint's dict."""
    checkpoint[KEY] = asdict(info)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[SOLO, ModelInfo]:
    """The model of a ``.ckpt`` or ``.safetensors`` file, in evaluation mode.

    Unpickles nothing but tensors and plain types, so a file from a stranger cannot run code.

    Raises:
        CheckpointError: no such file, another kind of file, or weights that do not fit their own settings.
    """
    weights, info = read_checkpoint(path)
    # The weights are in the file: do not download others first.
    try:
        model = build_solo(**{**info.model, "pretrained": False})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path} was written by another version: {error}") from error
    model.settings.pretrained = info.model.get("pretrained", False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint: {path} does not fit its own settings: {error}") from error
    return model.to(device).eval(), info


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """Weights of a ``.ckpt`` or ``.safetensors`` file by the model's names, and what it says of the model.

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
    with extra_train("a .safetensors file"):
        from safetensors.torch import save as to_safetensors

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return to_safetensors(weights, {KEY: json.dumps(asdict(info))})


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # What is no checkpoint can make the unpickler stumble anywhere: KeyError and IndexError too.
        reason = next(iter(str(error).splitlines()), "")
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
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return weights, _info(checkpoint[KEY], path)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    with extra_train("a .safetensors file"):
        from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read: {error}") from error
    if KEY not in metadata:
        raise CheckpointError(
            f"checkpoint: expected {path} to carry {KEY!r} in its metadata (export_safetensors writes it), "
            f"got {sorted(metadata)}"
        )
    try:
        values = json.loads(metadata[KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"checkpoint: expected {KEY!r} of {path} to be JSON: {error}") from error
    return weights, _info(values, path)


def _info(values: Any, path: Path) -> ModelInfo:
    try:
        return ModelInfo(**values)
    except TypeError as error:
        raise CheckpointError(f"checkpoint: {path} was written by another version: {error}") from error
