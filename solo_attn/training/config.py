"""The settings of a training run: three typed sections, read from YAML and from ``key=value`` overrides."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..data._files import replacing
from ._ranges import faults

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used: says which key or file, what was expected and what came."""


@dataclass
class DataConfig:
    """Where the data lies and how it is varied. Paths are relative to the current working directory.

    Attributes:
        train_images: folder of the training images.
        train_annotations: their COCO JSON.
        val_images: folder of the validation images.
        val_annotations: their COCO JSON.
        test_images: folder of images that no choice was made by, looked at once after training, or "".
        test_annotations: their COCO JSON; with it `compare` makes its tables of these.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        shortest_size: lengths in pixels, one of which the shorter side is resized to at random, or null.
        scale_jitter: [low, high] of a random factor on the image's size, or null.
        crop_size: side in pixels of a random square crop (or [height, width]), or null.
        colour: strength of brightness, contrast and saturation jitter; 0 for none.
        on_degenerate: what to do about boxes without width or height (COCO 2017 has some): "error" or
            "skip".
        check_images: decode every image once before training, so that a truncated one ends the run at its
            start and not hours later.
        workers: processes that load images, for each device.
    """

    train_images: str = ""
    train_annotations: str = ""
    val_images: str = ""
    val_annotations: str = ""
    test_images: str = ""
    test_annotations: str = ""
    flip: float = 0.5
    vertical_flip: float = 0.0
    shortest_size: list[int] | None = None
    scale_jitter: list[float] | None = None
    crop_size: int | list[int] | None = None
    colour: float = 0.0
    on_degenerate: Literal["error", "skip"] = "error"
    check_images: bool = True
    workers: int = 2


@dataclass
class ModelConfig:
    """The arguments of `solo_attn.models.build_solo`, except the number of classes: the data decides it.

    Null takes what fits the others: for ``norm``, ``freeze``, ``image_mean`` and ``image_std``.
    """

    backbone: str = "resnet50"
    norm: Literal["frozen_bn", "bn", "gn"] | None = None
    pretrained: bool | str = False
    freeze: int | Literal["all"] | None = None
    fpn_channels: int = 256
    head_channels: int = 256
    num_convs: int = 7
    num_grids: list[int] = field(default_factory=lambda: [40, 36, 24, 16, 12])
    scale_ranges: list[list[float]] = field(
        default_factory=lambda: [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    )
    coords: Literal["paper", "inclusive"] | None = "paper"
    attention: bool = True
    attention_scale: float | Literal["rsqrt", "cosine"] = "cosine"
    cosine_factor: float = 1.0
    min_size: int | list[int] = 800
    max_size: int = 1333
    resize_in_training: bool = True
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    mask_loss_weight: float = 3.0
    score_threshold: float = 0.1
    mask_threshold: float = 0.5
    nms_pre: int = 500
    nms_kernel: Literal["gaussian", "linear"] = "gaussian"
    nms_sigma: float = 2.0
    final_score_threshold: float = 0.05
    max_detections: int = 100


@dataclass
class TrainConfig:
    """How long and how fast to learn. The defaults are SOLO's recipe (spec 2, "Training recipe").

    Attributes:
        epochs: passes over the training images.
        max_steps: stop after so many optimizer steps instead, or null.
        max_minutes: stop earlier, after so many minutes of training, or null. The learning rate's
            schedule does not know of it; resumed with more minutes, the run goes on from that step.
        batch_size: images on one device at a time.
        accumulate: batches whose gradients are added up before an optimizer step.
        eval_batch_size: images at a time in validation.
        eval_max_detections: best instances of an image that the metrics count; COCO's are defined with 100.
        eval_every: epochs between validations; the last epoch is always validated.
        optimizer: "sgd" or "adamw".
        learning_rate: for a step over ``base_batch`` images; scaled linearly to the real number.
        base_batch: see ``learning_rate``; null uses the learning rate as it stands.
        momentum: of SGD.
        weight_decay: of either optimizer.
        warmup_steps: steps of the linear warm-up.
        warmup_ratio: the fraction of the learning rate that the warm-up begins with.
        schedule: "step": times ``gamma`` at each milestone; "cosine": down to 0 at the end.
        milestones: as fractions of all steps.
        gamma: see ``schedule``.
        clip_norm: the gradient's norm is cut to this; null for no limit.
        precision: "32-true", "bf16-mixed" or "16-mixed", which no CPU has.
        accelerator: "auto", "cpu", "cuda", "mps".
        devices: how many devices; more than one trains with DDP.
        checkpoint_steps: save ``last.ckpt`` every so many optimizer steps too, not only after each epoch
            and its validation; null for epochs only.
        log_every: steps between two lines of the losses in the logs.
        seed: of the initial weights, the order of the images and their variations.
    """

    epochs: int = 12
    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 2
    accumulate: int = 1
    eval_batch_size: int = 1
    eval_max_detections: int = 100
    eval_every: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    base_batch: int | None = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 500
    warmup_ratio: float = 1 / 3
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[float] = field(default_factory=lambda: [2 / 3, 11 / 12])
    gamma: float = 0.1
    clip_norm: float | None = 35.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    checkpoint_steps: int | None = None
    log_every: int = 50
    seed: int = 0


@dataclass
class Config:
    """One training run.

    Raises:
        ConfigError: numbers out of their range, all of them in one message.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if found := faults(self.as_dict()):
            raise ConfigError(f"config: expected {'; '.join(found)}")

    def as_dict(self) -> dict[str, Any]:
        """Nested dict of plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> Config:
        """The reverse of `as_dict`; keys that are not there keep their defaults.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type.
        """
        return _build(cls, values, "", source)

    def save(self, path: str | Path) -> None:
        """Write it as YAML that `load_config` reads."""
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.as_dict(), sort_keys=False), encoding="utf-8")


def differences(before: Config, now: Config) -> list[str]:
    """The keys, such as "train.epochs", in which two configurations differ."""
    first, second = before.as_dict(), now.as_dict()
    return [
        f"{section}.{key}"
        for section, values in second.items()
        for key, value in values.items()
        if first[section][key] != value
    ]


def changes(before: Config, now: Config, keys: Sequence[str]) -> str:
    """Those differences in words."""
    told = []
    for key in keys:
        section, name = key.split(".")
        old, new = getattr(getattr(before, section), name), getattr(getattr(now, section), name)
        told.append(f"{key} was {old!r} and is {new!r}")
    return ", ".join(told)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and change single keys.

    Args:
        path: the YAML file, or None for the defaults.
        overrides: such as "train.epochs=3"; what stands right of "=" is read as YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    source = "config" if path is None else str(path)
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"config: expected {path} to be a readable YAML file: {error}") from error
        values = _yaml(text, source) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: expected sections (data, model, train), got {values!r}")
    return override(Config.from_dict(values, source), overrides)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of ``config`` with single keys changed; see `load_config`."""
    values = config.as_dict()
    for item in overrides:
        key, equals, text = item.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise ConfigError(f"config: expected overrides of the form section.key=value, got {item!r}")
        values.setdefault(section, {})[name] = _yaml(text, item)
    return Config.from_dict(values)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: expected YAML: {error}") from error


def _build(cls: type[T], values: Any, prefix: str, source: str) -> T:
    if not isinstance(values, dict):
        name = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{source}: expected {name} to hold keys and values, got {values!r}")
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = get_close_matches(str(key), known, n=3)
            hint = (
                f"did you mean {' or '.join(prefix + c for c in close)}?"
                if close
                else f"known: {', '.join(known)}"
            )
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {hint}")
    arguments = {}
    for key, value in values.items():
        kind = hints[key]
        if is_dataclass(kind):
            # A section with nothing below its name is YAML's null.
            arguments[key] = _build(kind, {} if value is None else value, f"{prefix}{key}.", source)  # type: ignore[arg-type]
        else:
            arguments[key] = _convert(value, kind, f"{prefix}{key}", source)
    return cls(**arguments)


def _convert(value: Any, kind: Any, key: str, source: str) -> Any:
    for option in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        try:
            return _as(value, option)
        except (TypeError, ValueError, OverflowError):
            continue
    raise ConfigError(
        f"{source}: expected {key} to be {_describe(kind)}, got {value!r} ({type(value).__name__})"
    )


def _as(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, or TypeError / ValueError."""
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError
        return value
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return [_as(item, get_args(kind)[0]) for item in value]
    if kind is float and not isinstance(value, bool):
        # PyYAML reads 1e-4, without a dot, as text.
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(k) for k in get_args(kind))
    if origin is Literal:
        return " or ".join(repr(v) for v in get_args(kind))
    if origin is list:
        return f"a list of {_describe(get_args(kind)[0])}"
    names = {
        int: "an integer",
        float: "a finite number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names[kind]
