"""Start training from another model's weights, with other classes, another head or other grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .checkpoint import CheckpointError, read_checkpoint
from .pretrained import load_weights, read_weights
from .solo import SOLO

_BODY = "backbone.body."
_OF_CLASSES = ("head.category_output.weight", "head.category_output.bias")
# With other values of these the same weights give other features.
_MEANING = ("image_mean", "image_std", "stride_in_1x1", "coords")


@dataclass
class Transfer:
    """How a file's weights were used.

    Attributes:
        taken: names of the model's tensors that were filled from the file.
        skipped: names in the file that were not used, and why.
        anew: names of the model's tensors that stay as they were made.
        classes: names of the classes whose outputs were taken.
        notes: settings in which the file's model differs, so that its weights have another meaning.
    """

    taken: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """All of it as text, grouped by part of the model."""
        told = [f"taken: {len(self.taken)} tensors ({_parts(self.taken)})"]
        if self.classes:
            told.append(f"outputs of classes taken by name: {', '.join(self.classes)}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        told += [f"skipped, {reason}: {_parts(names)}" for reason, names in reasons.items()]
        if self.anew:
            told.append(f"made anew: {_parts(self.anew)}")
        return [*told, *(f"note: {note}" for note in self.notes)]


def take_weights(model: SOLO, path: str | Path, class_names: Sequence[str]) -> Transfer:
    """Fill a model with what fits of a file's weights.

    Tensors of the same name and shape are taken. Outputs of classes are matched by the classes' names; grids
    of another size and parts that only one of the two has are left out. A backbone of another architecture or
    with another kind of norm is left out whole.

    Args:
        model: filled in place.
        path: a ``.ckpt`` or ``.safetensors`` file of this library, converted ones included, or the state dict
            of a backbone alone, with torchvision's or timm's names.
        class_names: the model's, by label.

    Raises:
        CheckpointError: no such file, another kind of file, or one of which nothing fits.
    """
    path = Path(path)
    try:
        weights, info = read_checkpoint(path)
    except CheckpointError as error:
        return _take_backbone(model, path, error)
    own = model.state_dict()
    done = Transfer()
    settings = model.config
    for key in _MEANING:
        theirs = info.model.get(key, settings[key])
        if theirs != settings[key]:
            done.notes.append(f"{key} was {theirs!r} and is {settings[key]!r}")
    body = _other_body(info.model, settings)
    for name, x in weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in own:
            done.skipped[name] = "the model has no such part"
        elif not isinstance(x, torch.Tensor) or x.layout != torch.strided:
            done.skipped[name] = "no dense tensor"
        elif name.startswith(_BODY) and body:
            done.skipped[name] = body
        elif name in _OF_CLASSES and x.shape == (len(info.class_names), *own[name].shape[1:]):
            rows = [
                (new, info.class_names.index(c)) for new, c in enumerate(class_names) if c in info.class_names
            ]
            for new, old in rows:
                own[name][new] = x[old]
            done.classes = [class_names[new] for new, _ in rows]
            (done.taken if len(rows) == len(class_names) else done.anew).append(name)
        elif x.shape != own[name].shape:
            done.skipped[name] = f"of another shape ({list(x.shape)} and not {list(own[name].shape)})"
        else:
            own[name].copy_(x)
            done.taken.append(name)
    if not done.taken:
        raise CheckpointError(f"init_from: expected weights that fit the model, got none in {path}")
    filled = {*done.taken, *done.anew}
    done.anew += [name for name in own if name not in filled and not name.endswith("num_batches_tracked")]
    return done


def _take_backbone(model: SOLO, path: Path, error: CheckpointError) -> Transfer:
    body = model.backbone.body
    assert isinstance(body, torch.nn.Module)
    try:
        given = read_weights(path)
        load_weights(body, given, str(path))
    except (ValueError, OSError):
        raise error from None
    names = [f"backbone.{name}" for name in model.backbone.state_dict() if name.startswith("body.")]
    taken = [name for name in names if not name.endswith("num_batches_tracked")]
    anew = [name for name in model.state_dict() if name not in {*names}]
    return Transfer(taken=taken, anew=anew)


def _other_body(theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """Why a backbone's weights cannot be used in another one; "" if they can."""
    if theirs.get("backbone") != ours["backbone"]:
        return f"of {theirs.get('backbone')} and not {ours['backbone']}"
    norms = [{"frozen_bn": "bn"}.get(str(x), str(x)) for x in (theirs.get("norm"), ours["norm"])]
    return "" if norms[0] == norms[1] else f"with the norm {norms[0]} and not {norms[1]}"


def _parts(names: Sequence[str]) -> str:
    """The first two words of names, each once, with how often: head.mask_tower (21)."""
    counts: dict[str, int] = {}
    for name in names:
        part = ".".join(name.split(".")[:2])
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in counts.items())
