"""Kills, random COCO files and large predictions, as short as they can be; ``tools`` runs them for long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("lightning", reason='the extra "train" is not installed')
pytest.importorskip("hypothesis")
pytest.importorskip("timm")

from make import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

ATTACKS = {
    "kill_test": (
        ["--kills", "3", "--only", "train", "convert", "predict in shards"],
        "compared: predict in",
    ),
    "coco_files": (["--files", "30"], '"files": 30'),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_breaks_it(name: str) -> None:
    """In a process of its own, which has computed nothing yet and may fork."""
    arguments, said = ATTACKS[name]
    done = subprocess.run(
        [sys.executable, "-m", f"tools.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
