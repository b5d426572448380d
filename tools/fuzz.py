"""Random input for all that reads files and for the ops: ``python -m tools.fuzz --seconds 60``.

Every case is a function of its seed. Cases run in a child process, which writes each seed down before it
begins, so that a crash, a hang and endless memory are caught with their seed; the next child goes on behind
it. What it finds is printed with the command that repeats it, and belongs into tests/regressions.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fuzz_ops import fuzz_op

HANG, MEMORY = 60, 8 * 2**30  # seconds without a new seed; bytes of address space above what torch maps

ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**400,
    float("nan"),
    1e300,
    "",
    "x" * 300,
    "\x1b[2J",
    "\ud800",
    [],
    {},
    [[1]],
)


def fuzz_image(rng: random.Random, folder: Path) -> None:
    """An image file with some bytes changed, cut or doubled is read or refused."""
    from PIL import Image

    from solo_attn.data import ImageError, read_image

    kind = rng.choice(["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
    path = folder / "a.img"
    Image.effect_noise((rng.randint(1, 40), rng.randint(1, 40)), 80).convert("RGB").save(path, format=kind)
    path.write_bytes(spoilt(rng, path.read_bytes()))
    _only(ImageError, lambda: read_image(path))


def fuzz_json(rng: random.Random, folder: Path) -> None:
    """A dataset with odd values: what the check passes can be read, inspected and evaluated."""
    from PIL import Image

    from solo_attn.data import CocoInstances, DatasetError
    from solo_attn.evaluation import evaluate
    from solo_attn.inspection.objects import measure_objects

    Image.new("RGB", (30, 20)).save(folder / "a.png")
    shape: Any = rng.choice([[[1, 1, 9, 1, 9, 9]], {"size": [20, 30], "counts": [100, 50, 450]}])
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 32, "segmentation": shape}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [one, {**one, "id": 2, "iscrowd": 1}],
    }
    for _ in range(rng.randint(0, 3)):
        change(rng, content)
    path = folder / "set.json"
    path.write_bytes(
        json.dumps(content).encode() if rng.random() < 0.9 else spoilt(rng, json.dumps(content).encode())
    )
    skip = rng.choice(["error", "skip"])
    data = _only(DatasetError, lambda: CocoInstances(folder, path, on_degenerate=skip))
    if data is not None:
        for k in range(len(data)):
            data[k]
        measure_objects(data)
        evaluate(data.coco, [])


def fuzz_parquet(rng: random.Random, folder: Path) -> None:
    """Results as Parquet, with some bytes changed, are read or refused."""
    from solo_attn.formats.parquet import read_parquet, write_parquet

    one = {"image_id": 1, "category_id": 2, "bbox": [0.0, 0, 9, 9], "score": 0.5, "file_name": "a.png"}
    one["segmentation"] = {"size": [20, 30], "counts": "PX5"}
    path = folder / "a.parquet"
    write_parquet(path, [one] * rng.randint(0, 50))
    path.write_bytes(spoilt(rng, path.read_bytes()))
    _only((OSError, ValueError), lambda: read_parquet(path))


def fuzz_yaml(rng: random.Random, folder: Path) -> None:
    """A configuration with changed characters is one line of an error, or a configuration."""
    from solo_attn.training import Config, ConfigError, load_config

    path = folder / "c.yaml"
    Config().save(path)
    text = path.read_text()
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice(["[", "{", "*a", "&a ", ": ", "~", "!!set ", "9" * 5000, "\n", "-1e999"])
            + text[at:]
        )
    path.write_text(text, encoding="utf-8")
    _only(ConfigError, lambda: load_config(path))


def fuzz_checkpoint(rng: random.Random, folder: Path) -> None:
    """A checkpoint with odd settings, or with changed bytes, is loaded or refused."""
    import torch

    from solo_attn.models import CheckpointError, ModelInfo, build_solo, load_model, save_model

    settings = {"backbone": "resnet18", "fpn_channels": 32, "head_channels": 32, "num_convs": 1}
    model = build_solo(1, **settings, num_grids=(3, 2, 2, 2, 2))
    path = folder / rng.choice(["a.ckpt", "a.safetensors"])
    save_model(model, ModelInfo(model.config, ["a"], [1], {}), path)
    if path.suffix == ".ckpt" and rng.random() < 0.7:
        content = torch.load(path, weights_only=True)
        change(rng, content["solo_attn"])
        torch.save(content, path)
    else:
        path.write_bytes(spoilt(rng, path.read_bytes()))
    _only(CheckpointError, lambda: load_model(path))


def fuzz_command(rng: random.Random, folder: Path) -> None:
    """Arguments of the command in any order end with a status, and with no traceback."""
    from typer.testing import CliRunner

    from solo_attn.cli import app

    words = [
        "train",
        "eval",
        "predict",
        "inspect",
        "convert",
        "--out",
        str(folder / "o"),
        "--resume",
        "--device",
        "cpu",
    ]
    words += [
        "labelme",
        "-1",
        "train.epochs=x",
        "\x1b",
        "",
        str(folder),
        str(folder / "none.ckpt"),
        "--images",
        "--score",
    ]
    result = CliRunner().invoke(app, rng.choices(words, k=rng.randint(1, 6)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "op": fuzz_op,
    "image": fuzz_image,
    "json": fuzz_json,
    "parquet": fuzz_parquet,
    "yaml": fuzz_yaml,
    "checkpoint": fuzz_checkpoint,
    "command": fuzz_command,
}


def _only(error: type[Exception] | tuple[type[Exception], ...], call: Callable[[], Any]) -> Any:
    try:
        return call()
    except error as caught:
        if len(str(caught)) > 10_000 or "\x1b" in str(caught):
            raise AssertionError(
                f"a message of {len(str(caught))} characters, or with control characters"
            ) from caught
        return None


def spoilt(rng: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt[: rng.randrange(len(spoilt))] if rng.random() < 0.3 else spoilt)


def change(rng: random.Random, value: Any) -> None:
    """Put something odd somewhere into nested dicts and lists."""
    while isinstance(value, (dict, list)) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.2:
            value[key] = rng.choice(ODD)
            return
        value = value[key]


def run_case(seed: int) -> None:
    """One case; raises what it should not."""
    rng = random.Random(seed)
    kind = KINDS[rng.choice(sorted(KINDS))]
    with tempfile.TemporaryDirectory() as folder:
        kind(rng, Path(folder))


def child(first: int) -> None:
    """Cases from a seed on, until it is ended: each seed is a line before it begins."""
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    seed = first
    while True:
        print(seed, flush=True)
        run_case(seed)
        seed += 1


def main() -> int:
    """Run children until the time is over; the exit status is 1 where anything was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    parser.add_argument("--case", type=int, help="run this seed alone, in this process")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        run_case(options.case)
        return 0
    if options.child is not None:
        child(options.child)
    end, seed, found = time.monotonic() + options.seconds, options.seed, 0
    while time.monotonic() < end:
        last, reason = _watch(seed, end)
        if reason is not None:
            found += 1
            print(f"python -m tools.fuzz --case {last}\n  {reason}", flush=True)
        seed = last + 1
    print(f"{seed - options.seed} cases, {found} found")
    return 1 if found else 0


def _watch(first: int, end: float) -> tuple[int, str | None]:
    """The last seed that a child began, and what ended it; None where the time did."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "tools.fuzz", "--child", str(first)]
        with subprocess.Popen(command, stdout=out, stderr=errors) as process:
            size, since, reason = 0, time.monotonic(), None
            while process.poll() is None:
                time.sleep(0.1)
                now = out.seek(0, 2)
                size, since = (now, time.monotonic()) if now != size else (size, since)
                if time.monotonic() > since + HANG:
                    reason = f"no end within {HANG} seconds"
                if time.monotonic() > end or reason:
                    process.kill()
                    break
            else:
                errors.seek(0)
                said = errors.read().strip().splitlines()
                reason = f"status {process.returncode}: {said[-1] if said else 'nothing said'}"
        out.seek(0)
        seeds = out.read().split()
        return int(seeds[-1]) if seeds else first, reason


if __name__ == "__main__":
    sys.exit(main())
