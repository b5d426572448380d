"""The settings of a training run: three sections, read from YAML and from ``section.key=value``.

pydantic checks types and ranges (`solo_attn._utils.settings`), PyYAML reads the values. Alternatives
considered: OmegaConf, whose structured configurations support neither Literal nor a list in place of a
number, and jsonargparse, whose error messages are for its own command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field
from typing_extensions import Self

from .._utils.errors import SoloAttnError
from .._utils.files import replacing
from .._utils.readers import one_line, read_text
from .._utils.settings import Flag, Integer, Number, Settings
from .._utils.text import change, shown
from ..models.settings import ModelSettings

Positive = Annotated[Integer, Ge(1)]
NotNegative = Annotated[Integer, Ge(0)]
Chance = Annotated[Number, Ge(0), Le(1)]
_MOST_BRACKETS = 1000
MoreThanZero = Annotated[Number, Gt(0)]


class ConfigError(SoloAttnError, ValueError):
    """A configuration that cannot be used: names the key or file, what was expected and what was given."""


class DataConfig(Settings):
    """Where the data is and how it is augmented. Paths are relative to the current working directory."""

    train_images: str = ""
    """Folder of the training images."""
    train_annotations: str = ""
    """Their COCO JSON."""
    val_images: str = ""
    """Folder of the validation images."""
    val_annotations: str = ""
    """Their COCO JSON."""
    test_images: str = ""
    """Folder of the test images, which are evaluated once after training, or ""."""
    test_annotations: str = ""
    """Their COCO JSON; if it is set, `compare` makes its tables from these images."""
    flip: Chance = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Chance = 0.0
    """Probability of a vertical flip."""
    rotate90: Flag = False
    """Rotate by 0, 90, 180 or 270 degrees at random, before all other transforms; for images without an up
    and down (microscopy, aerial)."""
    shortest_size: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Lengths in pixels; the shorter side is resized to a random one of them; null for none."""
    canvas: Positive | tuple[Positive, Positive] | None = None
    """Side in pixels (or [height, width]) of a canvas that every image is fitted to, times the factor of
    ``scale_jitter``; larger images are cropped and smaller ones are placed at random (large-scale jitter).
    All inputs then have this size. A mask is learned at its place and size relative to the input, so use the
    size that images are predicted at (``model.min_size``, ``max_size``), and ``model.resize_in_training:
    false``. Replaces ``shortest_size`` and ``crop_size``; null for none."""
    scale_jitter: tuple[MoreThanZero, MoreThanZero] | None = None
    """[low, high] of a random factor on the image's size, whose logarithm is uniform, or null."""
    crop_size: Positive | tuple[Positive, Positive] | None = None
    """Side in pixels of a random square crop (or [height, width]), or null."""
    colour: Annotated[Number, Ge(0)] = 0.0
    """Strength of brightness, contrast and saturation jitter; 0 for none."""
    copy_paste: Chance = 0.0
    """Probability that objects of another training image are pasted into one, at their original place."""
    min_area: Positive = 1
    """The smallest number of pixels of an object after all transforms; smaller objects are left out of
    training."""
    sample_power: Annotated[Number, Ge(0), Le(10)] = 0.0
    """Draw images with probabilities proportional to (objects + 1) ** ``sample_power``, so that crowded ones
    come more often, some more than once an epoch; 0 draws each once."""
    on_degenerate: Literal["error", "skip"] = "error"
    """What to do about boxes without width or height (COCO 2017 has some)."""
    check_images: Flag = True
    """Decode every image once before training, so that a truncated one ends the run at its start."""
    workers: NotNegative = 2
    """Processes that load images, for each device."""


class TrainConfig(Settings):
    """How long and how fast to learn; the defaults are SOLO's recipe (docs/method.md, "Training")."""

    init_from: str | None = None
    """A checkpoint or safetensors file, such as a converted one, or the state dict of a backbone; training
    starts from its weights where they fit. Outputs of classes are matched by name; what was copied and what
    was not is listed first. Null for none."""
    epochs: Positive = 12
    """Passes over the training images."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps instead; null for no limit."""
    max_minutes: MoreThanZero | None = None
    """Stop earlier, after this many minutes of training; null for no limit. The learning rate's schedule does
    not depend on it: resumed with more minutes, the run continues from that step."""
    batch_size: Positive = 2
    """Images on one device at a time."""
    accumulate: Positive = 1
    """Batches whose gradients are added up before an optimizer step."""
    eval_batch_size: Positive = 1
    """Images at a time in validation."""
    eval_max_detections: Annotated[Integer, Ge(10)] = 100
    """Best instances of an image that the metrics count; COCO's are defined with 100."""
    eval_every: Positive = 1
    """Epochs between validations; the last epoch is always validated."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Which optimizer."""
    learning_rate: MoreThanZero = 0.01
    """For a step over ``base_batch`` images; scaled linearly to the actual number."""
    base_batch: Positive | None = 16
    """See ``learning_rate``; null does not scale the learning rate."""
    backbone_rate: MoreThanZero = 1.0
    """Factor on the learning rate of the backbone without its pyramid."""
    ema: Annotated[Number, Gt(0), Lt(1)] | None = None
    """Decay of a running average of the weights over the optimizer steps, such as 0.999; null for none. The
    average is validated, tested and saved in checkpoints; the current weights
    serve only to resume."""
    patience: Positive | None = None
    """Stop after this many validations in a row without a new best AP; null for no limit. The learning rate's
    schedule does not depend on it."""
    cache_features: MoreThanZero | None = None
    """Keep the maps of a frozen backbone in memory, up to this many GiB, instead of computing them at every
    step (`solo_attn.training.features`); null for none. This covers only the backbone's body: pyramid and
    head are trained."""
    gate_rate: MoreThanZero = 7.0
    """Factor on the learning rate of the attention's gains and offsets, which have no weight decay."""
    momentum: Annotated[Number, Ge(0), Lt(1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[Number, Ge(0)] = 1e-4
    """Weight decay of either optimizer."""
    warmup_steps: NotNegative = 500
    """Steps of the linear warm-up."""
    warmup_ratio: Annotated[Number, Gt(0), Le(1)] = 1 / 3
    """The fraction of the learning rate at which the warm-up starts."""
    schedule: Literal["step", "cosine"] = "step"
    """Multiply the learning rate by ``gamma`` at each milestone, or decrease it to 0 along a cosine."""
    milestones: tuple[Annotated[Number, Gt(0), Lt(1)], ...] = (2 / 3, 11 / 12)
    """As fractions of all steps."""
    gamma: Annotated[Number, Gt(0), Le(1)] = 0.1
    """See ``schedule``."""
    clip_norm: MoreThanZero | None = 35.0
    """The gradient is clipped to this norm; null for no limit."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "auto"] = "auto"
    """Precision of the arithmetic; no CPU has "16-mixed". "auto" is "bf16-mixed" on a CPU that has bfloat16
    in hardware, where trainings reach the same AP (docs/results.md), and "32-true" elsewhere, on a GPU too,
    where that has not been measured; the run's files name the one that was used."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    devices: Positive = 1
    """How many devices of each machine; more than one in total trains with DDP."""
    nodes: Positive = 1
    """How many machines, each of which runs the same command (docs/training.md, "Several machines")."""
    checkpoint_steps: Positive | None = None
    """Save ``last.ckpt`` also every so many optimizer steps, not only after each epoch and its validation."""
    logger: Literal["tensorboard", "csv", "wandb", "mlflow"] = "tensorboard"
    """Where losses and metrics are logged in addition to the CSV file, which is always written; "csv" logs
    nowhere else. The packages wandb and mlflow are installed separately and read their own environment
    variables (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``)."""
    log_every: Positive = 50
    """Steps between two lines of the losses in the logs."""
    seed: Annotated[Integer, Ge(0), Le(2**32 - 1)] = 0
    """Seed of the initial weights, the order of the images and their random transforms; NumPy's seeds have 32
    bits."""

    @property
    def processes(self) -> int:
        """The number of processes that train together, on all machines."""
        return self.devices * self.nodes


class Config(Settings):
    """One training run."""

    data: DataConfig = DataConfig()
    """Where the data is and how it is augmented."""
    model: ModelSettings = ModelSettings()
    """The model, except for its number of classes, which the data decides."""
    train: TrainConfig = TrainConfig()
    """How long and how fast to learn."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> Self:
        """The reverse of `as_dict`; keys that are not there keep their defaults.

        Raises:
            ConfigError: unknown keys, values of the wrong type or out of their range, all in one message.
        """
        # A section with nothing below its name is YAML's null.
        sections = {k: {} if v is None else v for k, v in values.items()}
        for name, section in sections.items():
            unnamed = (
                [key for key in section if not isinstance(key, str)] if isinstance(section, dict) else []
            )
            if unnamed:
                raise ConfigError(f"{source}: expected names of settings in {name}, got {shown(unnamed)}")
        return cls.parse(sections, source, ConfigError)

    def save(self, path: str | Path) -> None:
        """Write it as YAML that `load_config` reads."""
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.as_dict(), sort_keys=False), encoding="utf-8")


def on_cpu(train: TrainConfig) -> bool:
    """Whether it trains on a CPU on this machine."""
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return train.accelerator == "cpu" or (train.accelerator == "auto" and not accelerated)


def settled(config: Config) -> Config:
    """``config`` with the precision that "auto" means on this machine."""
    train = config.train
    if train.precision != "auto":
        return config
    able = torch.cpu.get_capabilities() if on_cpu(train) else {}
    fast = able.get("avx512_bf16") or able.get("amx_bf16")
    precision = "bf16-mixed" if fast else "32-true"
    return config.model_copy(update={"train": train.model_copy(update={"precision": precision})})


def differences(before: Config, now: Config) -> list[str]:
    """The keys, such as "train.epochs", in which two configurations differ."""
    first, second = before.as_dict(), now.as_dict()
    return [
        f"{section}.{key}"
        for section, values in second.items()
        for key, value in values.items()
        if first[section][key] != value
    ]


def changes(before: Config, now: Config, keys: Sequence[str]) -> list[str]:
    """Those differences in words: "train.epochs: 12 -> 24"."""
    first, second = before.as_dict(), now.as_dict()
    told = []
    for key in keys:
        section, name = key.split(".")
        told.append(change(key, first[section][name], second[section][name]))
    return told


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and change single keys.

    Args:
        path: the YAML file, or None for the defaults.
        overrides: such as "train.epochs=3"; the text after "=" is read as YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    source = "config" if path is None else str(path)
    if path is not None:
        values = read_yaml(path)
    return override(Config.from_dict(values, source), overrides)


def read_yaml(path: str | Path, expected: str = "sections (data, model, train)") -> dict[str, Any]:
    """The mapping in a YAML file; empty if the file is.

    Args:
        path: of the file.
        expected: what it is to hold, for the message.

    Raises:
        ConfigError: no such file, not YAML, or something else than names.
    """
    values = _yaml(read_text(path, ConfigError), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: expected {expected}, got {shown(values)}")
    return values


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of ``config`` with single keys changed; see `load_config`."""
    values = config.given()  # a head that is chosen here brings its own defaults
    for item in overrides:
        key, equals, text = item.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise ConfigError(f"config: expected overrides of the form section.key=value, got {shown(item)}")
        values.setdefault(section, {})[name] = _yaml(text, f"{key.strip()}={shown(text)}")
    return Config.from_dict(values)


def _yaml(text: str, source: str) -> Any:
    # PyYAML's time grows with the square of their depth.
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        raise ConfigError(f"{source}: expected YAML with at most {_MOST_BRACKETS} brackets")
    try:
        return yaml.safe_load(text)
    except Exception as error:  # dates and very long numbers raise Python's own errors, deep brackets too
        raise ConfigError(f"{source}: expected YAML: {one_line(error)}") from error
