"""Kill commands at random moments, go on, and compare bitwise: ``python -m tools.kill_test --kills 200``.

Each command is run once unbroken. Then it is run again in another folder, killed (SIGKILL, or SIGTERM every
third time) after a random part of the CPU time that it took, begun anew as its help says, and so on until it
ends by itself; what it leaves must be what the unbroken one left. Between two kills every file is whole. The
commands run in forks of one process that has imported everything: only what they do themselves is killed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from solo_attn._utils.environment import environment
from solo_attn.data import write_street_scenes
from solo_attn.formats.parquet import read_parquet
from solo_attn.training import Config, train

from .forked import Child, Ended, command

# What the commands would import themselves, each time anew.
WARM = (
    "lightning.pytorch.loggers.tensorboard",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "solo_attn.bulk",
    "solo_attn.evaluation",
    "tensorboard.summary.writer.event_file_writer",
    "timm",
    "torch._dynamo",
    "torch.utils.tensorboard",
)
SIZE = (64, 96)
TINY: dict[str, Any] = {
    "model": {
        "backbone": "timm/test_efficientnet_gn",
        "fpn_channels": 32,
        "head_channels": 32,
        "num_convs": 1,
        "num_grids": [8, 6, 4, 3, 2],
        "scale_ranges": [[1, 16], [8, 32], [16, 64], [32, 128], [64, 2048]],
        "min_size": SIZE[0],
        "max_size": SIZE[1],
        "score_threshold": 0.0,
        "final_score_threshold": 0.0,
        "mask_threshold": 0.01,
        "max_detections": 20,
    },
    "train": {
        "epochs": 2,
        "batch_size": 1,
        "learning_rate": 0.01,
        "base_batch": None,
        "warmup_steps": 2,
        "accelerator": "cpu",
        "log_every": 1,
        "checkpoint_steps": 1,
    },
}
# See `forked` for the first one; the last one is SIGTERM before or after the command itself.
ENDED = {-signal.SIGPROF: "SIGKILL", 128 + signal.SIGTERM: "SIGTERM", -signal.SIGTERM: "SIGTERM"}
LEFT = ".*.tmp*"  # what a kill may leave of a file that was being written
MOST = 5  # kills of one job: then it may come to its end


@dataclass(frozen=True)
class Job:
    """What is killed.

    Attributes:
        arguments: of ``solo-attn`` for an output folder, one list for each process.
        outputs: what must be the same in the end, out of that folder.
        clears: whether nothing half written is left in the end; else a kill's leftovers stay.
    """

    arguments: Callable[[Path], list[list[str]]]
    outputs: Callable[[Path], Any]
    clears: bool = False


def weights(out: Path) -> Any:
    """The weights of a run, and what it measured."""
    state = torch.load(out / "last.ckpt", weights_only=True)["state_dict"]
    result = json.loads((out / "result.json").read_text())
    return {name: x.numpy().tobytes() for name, x in state.items()}, result["metrics"], result["steps"]


def files(out: Path) -> dict[str, Any]:
    """The content of every file that is not hidden and in no hidden folder."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = path.read_bytes()
    return found


def prepare(folder: Path) -> dict[str, Job]:
    """Data, a trained model and the jobs."""
    scenes = write_street_scenes(folder / "scenes", num_train=3, num_val=3, size=SIZE, seed=0)
    data = {key: str(getattr(scenes, key)) for key in ("train_images", "val_images")}
    data |= {key: str(getattr(scenes, key)) for key in ("train_annotations", "val_annotations")}
    config = Config.from_dict({**TINY, "data": {**data, "workers": 0}})
    config.save(folder / "c.yaml")
    (folder / "two.yaml").write_text("with: {}\nwithout: {model: {attention: null}}\n", encoding="utf-8")
    ids = folder / "ids"
    ids.mkdir()
    for path in scenes.train_images.glob("*.png"):
        Image.fromarray((np.indices(SIZE).sum(0) // 20).astype(np.uint8)).save(ids / path.name)
    model = str(folder / "model" / "last.ckpt")
    _succeed(Child(lambda: 0 if train(config, folder / "model").steps else 1).wait(), "the model")
    where = ["--images", data["val_images"], "--annotations", data["val_annotations"], "--device", "cpu"]
    found = ["predict", model, data["val_images"], "--device", "cpu", "--piece", "1", "--resume"]
    for kind in ("picture", "coco", "parquet", "geojson", "ids"):
        found += ["--format", kind]
    compare = ["compare", str(folder / "c.yaml"), "train.epochs=1", "--seeds", "1"]
    compare += ["--systems", str(folder / "two.yaml"), "--out"]
    return {
        "train": Job(
            lambda out: [["train", str(folder / "c.yaml"), "--out", str(out), "--resume"]], weights, True
        ),
        "compare": Job(
            lambda out: [[*compare, str(out)]],
            lambda out: (
                [weights(run) for run in sorted((out / "runs").iterdir())],
                (out / "tables.md").read_bytes(),
            ),
        ),
        "convert": Job(
            lambda out: [["convert", "id-masks", data["train_images"], str(ids), str(out / "set.json")]],
            files,
        ),
        "predict": Job(lambda out: [[*found, "--out", str(out)]], files, True),
        "predict in shards": Job(
            lambda out: [[*found, "--out", str(out), "--shard", f"{k}/2"] for k in (1, 2)], files
        ),
        "eval": Job(
            lambda out: [
                ["eval", model, *where, "--errors", *as_files(out, picture="a.png", out="found.json")]
            ],
            files,
        ),
    }


def as_files(folder: Path, /, **names: str) -> list[str]:
    """Options whose values are files of a folder."""
    return [word for option, name in names.items() for word in (f"--{option}", str(folder / name))]


def run(job: Job, out: Path, kill: tuple[signal.Signals, float] | None = None) -> tuple[str | None, float]:
    """Run a job's processes, of which the last may be killed: by what it was, and its CPU time."""
    calls = job.arguments(out)
    children = [
        Child(lambda words=words: command(words), kill=kill if words is calls[-1] else None)  # type: ignore[misc]
        for words in calls
    ]
    ends = [child.wait() for child in children]
    for end in ends[:-1]:
        _succeed(end, " ".join(calls[0]))
    last = ends[-1]
    if kill is not None and last.status in ENDED:
        return ENDED[last.status], last.seconds
    _succeed(last, " ".join(calls[-1]))
    return None, last.seconds


def _succeed(end: Ended, what: str) -> None:
    if end.status:
        raise AssertionError(f"{what}: status {end.status}\n{end.output}")


def check_whole(out: Path) -> None:
    """Refuse a file that is half written."""
    for path in (out / name for name in files(out)):
        if path.suffix in (".json", ".geojson"):
            json.loads(path.read_bytes())
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".parquet":
            read_parquet(path)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()


def attack(name: str, job: Job, whole: tuple[Any, float], folder: Path, rng: random.Random) -> Counter[str]:
    """Kill a job a few times, let it end and compare; how often it was killed by what."""
    wanted, seconds = whole
    kills: Counter[str] = Counter()
    out = folder / "out"
    for _ in range(rng.randint(1, MOST)):
        signum = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        killed, _ = run(job, out, (signum, rng.random() * seconds))
        check_whole(out)
        if killed is None:
            break
        kills[killed] += 1
    else:
        run(job, out)
    if job.outputs(out) != wanted:
        raise AssertionError(f"{name}: another result than unbroken")
    left = [str(path) for path in out.rglob(LEFT)] if job.clears else []
    if left:
        raise AssertionError(f"{name}: left {', '.join(left)}")
    return kills


def main() -> int:
    """Kill as often as asked for, the jobs in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in all (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of jobs, such as train or 'predict in shards'")
    parser.add_argument("--store", type=Path, help="JSON file that receives the figures after each job")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in WARM:
        importlib.import_module(module)
    began = time.monotonic()
    machine = environment("cpu")
    kills: dict[str, Counter[str]] = {}
    compared = rounds = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = prepare(folder)
        if unknown := set(options.only or ()) - set(jobs):
            parser.error(f"expected --only among {', '.join(jobs)}, got {', '.join(sorted(unknown))}")
        jobs = {name: job for name, job in jobs.items() if name in (options.only or jobs)}
        whole = {}
        for name, job in jobs.items():
            _, seconds = run(job, folder / "whole" / name)
            whole[name] = job.outputs(folder / "whole" / name), seconds
            kills[name] = Counter()
            print(f"{name}: {seconds:.1f} seconds of CPU time unbroken", flush=True)
        while sum(map(Counter.total, kills.values())) < options.kills:
            for name, job in jobs.items():
                seed = options.seed + rounds
                rounds += 1
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    fallen = attack(name, job, whole[name], Path(out), random.Random(seed))
                kills[name] += fallen
                compared += bool(fallen.total())
                done = sum(map(Counter.total, kills.values()))
                print(f"{done} kills, {compared} compared: {name}", flush=True)
                if options.store is not None:
                    found = {"kills": done, "compared": compared, "of": kills, "environment": machine}
                    found["seconds"] = round(time.monotonic() - began)
                    options.store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
