"""Separate processes: one that is killed, and the ranks of torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image
from small_solo import confident, small

from solo_attn.models import ModelInfo, save_model

ROOT = Path(__file__).parents[2]
FORMATS = [word for kind in ("coco", "parquet", "geojson") for word in ("--format", kind)]
OPTIONS = [*FORMATS, "--piece", "1", "--workers", "0", "--device", "cpu"]

# The kernel's out-of-memory killer comes like this: no exception, no exit handlers.
KILLED = """
import os, signal
from solo_attn.__main__ import main
from solo_attn.predictor import Predictor
find, calls = Predictor.find, []
def killed(self, batch):
    calls.append(batch)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return find(self, batch)
Predictor.find = killed
main()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "a.safetensors"
    model = confident(small(max_detections=2, min_size=32, max_size=48))
    save_model(model, ModelInfo(model.config, ["a", "b", "c"], [4, 2, 9], {}), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(5):
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def whole(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    code, output = run("predict", weights, images, "--out", out, *OPTIONS)
    assert code == 0, output
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".pieces/")}


def process(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)


def test_a_killed_process_goes_on(whole, weights: Path, images: Path, tmp_path: Path) -> None:
    command = ["predict", weights, images, "--out", tmp_path, *OPTIONS]
    done = process("-c", KILLED, *command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len([*(tmp_path / ".pieces" / "1").glob("*.json")]) == 1 + 2, "the job, and two pieces"
    assert not (tmp_path / "results.json").exists()
    code, output = run(*command, "--resume")
    assert (code, "in 5 images" in output) == (0, True), output
    assert contents(tmp_path) == whole


def test_ranks_of_torchrun_are_shards(whole, weights: Path, images: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "solo_attn"]
    done = process(*launch, "predict", weights, images, "--out", tmp_path, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / ".pieces" / "1").glob("begun-*-of-2")]) == 2
    assert contents(tmp_path) == whole
