"""What a resumed run and its folder must agree in: settings, data, classes and the checkpoint itself."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from .._utils.files import write_durably
from .._utils.readers import read_json
from .._utils.text import below
from ..data import CocoInstances, classes_differ
from ..models.checkpoint import info_of, read_plain
from .config import Config, ConfigError, changes, differences, load_config
from .datamodule import SOLODataModule

# Settings that may change when a run is resumed: they do not change what is computed.
FREE = {
    "data.check_images",
    "data.workers",
    "train.max_minutes",
    "train.log_every",
    "train.logger",
    "train.checkpoint_steps",
    "train.eval_batch_size",
}

DATA = "data.json"  # of a run folder: what it was trained on


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own uses the system's temporary folder: if that is on another disk, its move is a copy."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead: dict[Path, dict[str, Any]] = {}

    def read_ahead(self, path: Path) -> dict[str, Any]:
        """`read_plain` before Lightning does: the next `load_checkpoint` of ``path`` gives the same dict."""
        self._ahead[path] = read_plain(path)
        return self._ahead[path]

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load with `read_plain`: plain data only, and one message for anything else."""
        return self._ahead.pop(Path(path), None) or read_plain(path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save with `write_durably`."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_durably(path, buffer.getbuffer())


def refuse_second(last: Path, resume: bool) -> None:
    """Refuse a folder that already holds a run, unless it is resumed.

    Raises:
        ConfigError: it holds one.
    """
    if last.exists() and not resume:
        raise ConfigError(
            f"train: {last.parent} already holds a run; continue it with --resume or choose another folder"
        )


def prepare(
    config: Config,
    run_dir: Path,
    last: Path,
    data: SOLODataModule,
    files: AtomicCheckpointIO,
) -> None:
    """Prepare a run folder, or check that the run in it can continue with these settings and this data.

    Args:
        config: of the run.
        run_dir: its folder.
        last: the checkpoint to resume from, if it exists.
        data: of the run.
        files: of the trainer, which will load ``last`` too.

    Raises:
        ConfigError: other settings, classes, images or annotations than it was started with.
        CheckpointError: ``last`` exists and is not a checkpoint.
    """
    path, resumed = run_dir / "config.yaml", last.exists()
    if path.exists() and not resumed:
        # A run that was killed before its first checkpoint: its logs do not belong to this one.
        for logs in ("csv", "tensorboard"):
            shutil.rmtree(run_dir / logs, ignore_errors=True)
    found = _of_data(data)
    if resumed:
        if path.exists():
            before = load_config(path)
            keys = [key for key in differences(before, config) if key not in FREE]
            if keys:
                raise ConfigError(
                    f"train: expected the settings that {run_dir} was started with, which are in {path}, got "
                    f"others (old -> new):{below(changes(before, config, keys))}"
                )
        _same_data(run_dir, found)
        trained = info_of(files.read_ahead(last), last).categories
        if difference := classes_differ(trained, data.train_set.categories):
            raise ConfigError(
                f"train: expected {data.train_set.annotations} to have the classes that {last} was trained "
                f"for, got {difference}"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    config.save(path)
    write_durably(run_dir / DATA, (json.dumps(found, indent=1) + "\n").encode())


def _of_data(data: SOLODataModule) -> dict[str, Any]:
    parts = {"training": data.train_set, "validation": data.val_set, "test": data.test_set}
    return {name: _of_part(part) for name, part in parts.items() if part is not None}


def _of_part(part: CocoInstances) -> dict[str, Any]:
    return {
        "images": part.summary.images,
        "annotations": part.summary.annotations,
        "sha256": hashlib.sha256(part.annotations.read_bytes()).hexdigest(),
    }


def _same_data(run_dir: Path, found: dict[str, Any]) -> None:
    if not (run_dir / DATA).exists():
        return
    before = read_json(run_dir / DATA, ConfigError)
    if before == found:
        return
    told = []
    for name, now in found.items():
        was = before.get(name, {}) if isinstance(before, dict) else {}
        told += [
            f"{key} of {name} were {was.get(key)} and are {now[key]}"
            for key in ("images", "annotations")
            if was.get(key) != now[key]
        ]
        if was != now and not told:
            told.append(f"the annotation file of {name} is another one")
    raise ConfigError(
        f"train: expected the data that {run_dir} was started with, but {', '.join(told) or 'a part is gone'}"
        "; the order of the images and the results would be others"
    )
