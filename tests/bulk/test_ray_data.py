"""The example of Ray Data, with Ray itself: two actors on this machine, one of which is killed at work."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_solo import confident, small

import solo_attn
from solo_attn.formats import read_parquet
from solo_attn.models import ModelInfo, save_model

EXAMPLES = Path(__file__).parents[2] / "examples"


# On a busy machine: its processes may start late, and other programs' memory is no reason to kill a worker.
# Its workers would have the lowest priority.
PATIENT = {
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "240",
    "RAY_gcs_server_port_wait_time_s": "240",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
TRIES = 3  # the raylet has a limit of its own for its agent's start, which no variable changes


@pytest.fixture
def ray_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    ) as folder:  # pytest's are too long for sockets
        for tries_left in reversed(range(TRIES)):
            try:
                ray.init(
                    num_cpus=2,
                    object_store_memory=2**27,
                    include_dashboard=False,
                    runtime_env={"env_vars": environment},
                    log_to_driver=False,
                    _temp_dir=folder,
                )
                break
            except Exception:
                ray.shutdown()
                if not tries_left:
                    raise
        try:
            yield importlib.import_module("ray_data")
        finally:
            ray.shutdown()


def test_it_is_short() -> None:
    assert len((EXAMPLES / "ray_data.py").read_text().splitlines()) < 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_actor_that_is_killed_loses_nothing(ray_data, tmp_path: Path) -> None:
    model = confident(small(max_detections=2, min_size=32, max_size=48))
    save_model(model, ModelInfo(model.config, ["a", "b", "c"], [4, 2, 9], {}), tmp_path / "a.safetensors")
    folder, killed = tmp_path / "images", tmp_path / "killed"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f"{k}.png")

    class Dies(ray_data.Find):
        def __call__(self, batch):
            found = super().__call__(batch)
            try:
                killed.touch(exist_ok=False)
            except FileExistsError:
                return found
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory ends

    ray_data.predict(tmp_path / "a.safetensors", folder, tmp_path / "out", batch_size=1, find=Dies)
    assert killed.exists()
    rows = sorted(read_parquet(tmp_path / "out"), key=lambda row: (row["image_id"], -row["score"]))
    predictor = solo_attn.load(tmp_path / "a.safetensors", "cpu")
    expected = [
        {**result, "file_name": str(file)}
        for image_id, file in enumerate(sorted(folder.iterdir()), start=1)
        for result in predictor(file).to_coco(image_id)
    ]
    assert len(expected) == 12
    for row, wanted in zip(rows, expected, strict=True):
        assert row == {**wanted, "score": pytest.approx(wanted["score"], abs=1e-6)}
