"""The demo: synthetic street scenes and small models, sized for two CPU cores and a few minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ..data import write_street_scenes
from ..models import ModelSettings
from .compare import SYSTEMS, Comparison, compare
from .config import Config, DataConfig, TrainConfig, on_cpu, override

TRAIN_IMAGES, VAL_IMAGES = 500, 40
SIZE = (144, 288)
SCENES_SEED = 0


def demo_config() -> Config:
    """The demo's settings, without the paths."""
    return Config(
        data=DataConfig(flip=0.5, workers=0),
        model=ModelSettings(
            # Fixed ImageNet features from a package, kept in memory once they are made: the time of a step is
            # that of the pyramid and the head.
            backbone="timm/tf_efficientnet_lite0",
            pretrained="package",
            freeze="all",
            fpn_channels=64,
            head_channels=64,
            num_convs=2,
            num_grids=(24, 20, 12, 8, 6),
            # Moved up from the paper's ratio to the image, so that most positive cells lie on the first two
            # levels, whose masks are the finest.
            scale_ranges=((1, 48), (36, 84), (66, 168), (132, 288), (240, 2048)),
            min_size=min(SIZE),
            max_size=max(SIZE),
            mask_loss_weight=1.5,
        ),
        train=TrainConfig(
            epochs=7,
            batch_size=4,
            eval_batch_size=4,
            eval_every=100,
            optimizer="adamw",
            learning_rate=4e-3,
            base_batch=None,
            warmup_steps=20,
            schedule="cosine",
            ema=0.99,
            cache_features=2.0,
            precision="auto",
            log_every=10,
        ),
    )


def demo(
    out_dir: str | Path = "demo",
    *,
    seeds: int = 1,
    overrides: Sequence[str] = (),
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    size: tuple[int, int] = SIZE,
    jobs: int | None = None,
    console: Console | None = None,
) -> Comparison:
    """Write scenes into ``out_dir`` and `compare` the paper's three systems on them.

    Args:
        out_dir: folder of scenes, runs, tables and pictures; parts that are already done are skipped.
        seeds: runs of each system.
        overrides: changes to `demo_config`, such as "train.epochs=2".
        train_images: scenes to train on.
        val_images: scenes to validate on.
        size: of a scene, (height, width) in pixels.
        jobs: runs at a time, see `compare`; by default the three systems on a CPU of several cores, else one.
        console: where progress goes; a new one by default.

    Raises:
        ConfigError: see `load_config`; finished runs in ``out_dir`` that had other settings.
        DatasetError, TrainingError, SignalledError: see `compare`.
    """
    out_dir, console = Path(out_dir), console or Console()
    override(demo_config(), overrides)  # a mistyped setting is said before anything is drawn
    # Numbers and size are in the name, so that results on other scenes are not mistaken for these.
    folder = out_dir / f"scenes-{train_images}-{val_images}-{size[0]}x{size[1]}"
    told = f"{train_images} + {val_images} street scenes in {folder}"
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    scenes = write_street_scenes(
        folder, num_train=train_images, num_val=val_images, size=size, seed=SCENES_SEED
    )
    config = demo_config()
    config.model.min_size, config.model.max_size = min(size), max(size)
    config.data.train_images = str(scenes.train_images)
    config.data.train_annotations = str(scenes.train_annotations)
    config.data.val_images = str(scenes.val_images)
    config.data.val_annotations = str(scenes.val_annotations)
    config = override(config, overrides)
    first = config.train.seed
    if jobs is None:  # three on two cores end sooner than two and then one
        jobs = len(SYSTEMS) if on_cpu(config.train) and torch.get_num_threads() > 1 else 1
    return compare(config, range(first, first + seeds), out_dir, jobs=jobs, console=console)
