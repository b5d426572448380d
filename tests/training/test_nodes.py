"""Two machines, here two commands on loopback: they learn what one process learns of the same batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from solo_attn._utils.environment import first_process
from solo_attn.training import Config, train

MakeConfig = Callable[..., Config]
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return found


def commands(way: str, port: int, *train_command: object) -> list[tuple[list[str], dict[str, str]]]:
    """What is typed on each of the two machines, and its environment."""
    words = [*map(str, train_command)]
    found = []
    for node in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if way == "torchrun":
            launch = f"--nnodes 2 --nproc-per-node 1 --node-rank {node} --master-addr 127.0.0.1"
            head = ["-m", "torch.distributed.run", *launch.split(), "--master-port", str(port)]
        else:
            head = []
            environment |= {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        found.append(([sys.executable, *head, "-m", "solo_attn", *words], environment))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["torchrun", "NODE_RANK"])
def test_two_machines_learn_what_one_process_does(config: MakeConfig, tmp_path: Path, way: str) -> None:
    settings = config(epochs=1, batch_size=1, nodes=2, base_batch=2)
    settings.save(tmp_path / "two.yaml")
    done = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command, environment in commands(
            way, free_port(), "train", tmp_path / "two.yaml", "--out", tmp_path / "two"
        )
    ]
    try:
        told = [process.communicate(timeout=600) for process in done]
    finally:
        for process in done:
            process.kill()
    assert [process.returncode for process in done] == [0, 0], told
    assert "last.ckpt" in told[0][0]
    assert "last.ckpt" not in told[1][0], "the first process speaks for all"
    train(config(epochs=1, batch_size=1, accumulate=2, base_batch=2), tmp_path / "one")
    mine, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")]
    assert results[0]["steps"] == results[1]["steps"] == 3
    rates = [[row["train/lr"] for row in result["curve"] if "train/lr" in row] for result in results]
    assert rates[0] == rates[1], "the learning rate follows the global batch"


def test_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert first_process()
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
        assert not first_process(), name
        monkeypatch.setenv(name, "0")
        assert first_process()
