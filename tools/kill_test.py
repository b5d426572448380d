"""Kill commands at random moments, go on, and compare bitwise: ``python -m tools.kill_test --kills 200``.

Each command is run once unbroken. Then it is run again in another folder, killed (SIGKILL, or SIGTERM every
third time) after a random part of that time, begun anew as its help says, and so on until it ends by itself;
what it leaves must be what the unbroken one left. Between two kills every output is whole.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = {
    "model": {
        "backbone": "resnet18",
        "norm": "gn",
        "fpn_channels": 32,
        "head_channels": 32,
        "num_convs": 1,
        "num_grids": [8, 6, 4, 3, 2],
        "min_size": 64,
        "max_size": 96,
        "score_threshold": 0.0,
        "final_score_threshold": 0.0,
        "mask_threshold": 0.01,
    },
    "train": {"epochs": 2, "batch_size": 1, "accelerator": "cpu", "log_every": 1, "checkpoint_steps": 1},
}


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        arguments: of ``solo-attn`` for an output folder.
        outputs: what must be the same in the end, out of that folder.
    """

    arguments: Callable[[Path], list[str]]
    outputs: Callable[[Path], Any]


def weights(out: Path) -> Any:
    """The weights of a run, and what it measured."""
    import torch

    state = torch.load(out / "last.ckpt", weights_only=True)["state_dict"]
    result = json.loads((out / "result.json").read_text())
    return {name: x.numpy().tobytes() for name, x in state.items()}, result["metrics"], result["steps"]


def files(out: Path) -> Any:
    """The bytes of every file that is not hidden."""
    found = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def prepare(folder: Path) -> dict[str, Command]:
    """Data, a trained model and the commands."""
    import numpy as np
    from PIL import Image

    from solo_attn.data import write_street_scenes
    from solo_attn.training import Config, train

    scenes = write_street_scenes(folder / "scenes", num_train=6, num_val=3, size=(64, 96), seed=0)
    data = {key: str(getattr(scenes, key)) for key in ("train_images", "val_images")}
    data |= {key: str(getattr(scenes, key)) for key in ("train_annotations", "val_annotations")}
    config = Config.from_dict({**TINY, "data": {**data, "workers": 0}})
    config.save(folder / "c.yaml")
    ids = folder / "ids"
    ids.mkdir()
    for path in scenes.train_images.glob("*.png"):
        Image.fromarray((np.indices((64, 96)).sum(0) // 20).astype(np.uint8)).save(ids / path.name)
    model = train(config, folder / "model").last
    where = ["--images", data["val_images"], "--annotations", data["val_annotations"], "--device", "cpu"]
    return {
        "train": Command(
            lambda out: ["train", str(folder / "c.yaml"), "--out", str(out), "--resume"], weights
        ),
        "compare": Command(
            lambda out: [
                "compare",
                str(folder / "c.yaml"),
                "train.epochs=1",
                "--seeds",
                "1",
                "--out",
                str(out),
            ],
            lambda out: [weights(run) for run in sorted((out / "runs").iterdir())],
        ),
        "convert": Command(
            lambda out: ["convert", "id-masks", data["train_images"], str(ids), str(out / "set.json")], files
        ),
        "predict": Command(
            lambda out: ["predict", str(model), data["val_images"], "--out", str(out), "--device", "cpu"],
            files,
        ),
        "eval": Command(lambda out: ["eval", str(model), *where, "--out", str(out / "found.json")], files),
    }


def run(arguments: list[str], after: float | None, signum: int) -> int | None:
    """The exit status, or None where it was killed."""
    program = [sys.executable, "-m", "solo_attn", *arguments]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signum)
            _, errors = process.communicate()
            if process.returncode in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
                return None
        if process.returncode:
            raise AssertionError(f"{' '.join(arguments)}: status {process.returncode}\n{errors}")
        return 0


def check_whole(out: Path) -> None:
    """Refuse a file that is half written."""
    import torch
    from PIL import Image

    for name, content in files(out).items() if out.exists() else ():
        path = out / name
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()


def main() -> int:
    """Kill as often as asked for, the commands in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, kills, compared = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        commands = prepare(folder)
        wanted, seconds = {}, {}
        for name, command in commands.items():
            out, begin = folder / "whole" / name, time.monotonic()
            out.parent.mkdir(exist_ok=True)
            run(command.arguments(out), None, 0)
            wanted[name], seconds[name] = command.outputs(out), time.monotonic() - begin
        while kills < options.kills:
            for name, command in commands.items():
                out = folder / f"{name}{compared}"
                for _ in range(5):  # an unlucky one would else never come to its end
                    signum = signal.SIGTERM if kills % 3 == 2 else signal.SIGKILL
                    if run(command.arguments(out), rng.uniform(0.2, 1) * seconds[name], signum) == 0:
                        break
                    kills += 1
                    check_whole(out)
                else:
                    run(command.arguments(out), None, 0)
                if command.outputs(out) != wanted[name]:
                    raise AssertionError(f"{name}: another result than unbroken (seed {options.seed})")
                compared += 1
                print(f"{kills} kills, {compared} compared: {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
