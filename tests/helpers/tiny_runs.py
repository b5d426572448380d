"""Runs of a few steps on a few street scenes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from solo_attn.data import write_street_scenes
from solo_attn.training import Config

SIZE = (64, 96)


def tiny_config(folder: Path, **train: object) -> Config:
    """Write the scenes into ``folder`` and point a small configuration to them."""
    scenes = write_street_scenes(folder, num_train=6, num_val=3, size=SIZE, seed=0)
    return Config.from_dict(
        {
            "data": {
                "train_images": str(scenes.train_images),
                "train_annotations": str(scenes.train_annotations),
                "val_images": str(scenes.val_images),
                "val_annotations": str(scenes.val_annotations),
                "workers": 0,
            },
            "model": {
                "backbone": "resnet18",
                "norm": "gn",
                "fpn_channels": 32,
                "head_channels": 32,
                "num_convs": 1,
                "num_grids": [8, 6, 4, 3, 2],
                "scale_ranges": [[1, 16], [8, 32], [16, 64], [32, 128], [64, 2048]],
                "min_size": SIZE[0],
                "max_size": SIZE[1],
                # After two epochs scores and masks are faint: without these nothing is found or tested.
                "score_threshold": 0.0,
                "final_score_threshold": 0.0,
                "mask_threshold": 0.01,
                "max_detections": 30,
            },
            "train": {
                "epochs": 2,
                "batch_size": 2,
                "learning_rate": 0.01,
                "base_batch": None,
                "warmup_steps": 2,
                "accelerator": "cpu",
                "precision": "32-true",  # on every machine the same
                "log_every": 1,
                **train,
            },
        }
    )


def digests(folder: Path) -> dict[Path, str]:
    """A hash of each file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
