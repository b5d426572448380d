"""The example of Ray Data, with Ray itself: two actors on this machine, one of which is killed at work."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_solo import confident, small

import solo_attn
from solo_attn.formats import read_parquet
from solo_attn.models import ModelInfo, save_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ray_data(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.syspath_prepend(str(EXAMPLES))
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment}, log_to_driver=False)
    try:
        import ray_data

        yield ray_data
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
