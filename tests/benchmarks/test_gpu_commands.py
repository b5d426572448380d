"""The commands for a GPU where there is none: what they would run, and that none of them runs for ever."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from make import ROOT, dry_run, make, needs_make
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_run", ROOT / "tests" / "gpu" / "run.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


HANGING = """
import subprocess, sys, time
from pathlib import Path

def test_hangs():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(__file__).with_name("child").write_text(str(child.pid))
    time.sleep(600)
"""


def test_a_process_that_hangs_is_cut_off(runner: ModuleType, tmp_path: Path) -> None:
    """With what it started; and what comes when no time is left is not begun."""
    (tmp_path / "test_hangs.py").write_text(HANGING)
    (tmp_path / "test_passes.py").write_text("def test_passes(): pass\n")
    processes = runner.Processes(80)
    processes.run(str(tmp_path / "test_passes.py"), "-q", share=1.0)
    assert processes.failed == []
    started = tmp_path / "child"
    processes.run(str(tmp_path / "test_hangs.py"), "-q", share=0.25)
    assert started.exists()
    (cut,) = processes.failed
    assert cut.startswith("cut off after 20 s: ")
    assert cut.endswith(f"pytest {tmp_path / 'test_hangs.py'} -q")
    time.sleep(0.1)
    state = Path(f"/proc/{started.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    processes.end = time.monotonic()
    processes.run(str(tmp_path / "test_passes.py"), share=1.0)
    assert processes.failed[1].startswith("no time was left for: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_model_is_not_timed() -> None:
    from benchmarks.end_to_end import run

    done = CliRunner().invoke(run.app, [])
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert "PyTorch sees no CUDA device" in line


@needs_make
def test_all_of_it_in_pieces(tmp_path: Path) -> None:
    """`make gpu` goes on while a piece ends with 75, and ends with any other status; nothing is set up."""
    lines = dry_run("gpu").splitlines()
    parts = ("gpu/run.py", "gpu.ops run", "end_to_end.run", "compare", "solo-attn scenes", "compare")
    found = [line for line in lines if any(part in line for part in parts)]
    for line, part in zip(found, parts, strict=True):
        assert part in line
    for name in ("python", "solo-attn"):
        (tmp_path / name).write_text(
            f"#!/bin/sh\necho $* >> {tmp_path}/said\n"
            "case $* in *end_to_end*|compare*) ;; *) exit 0;; esac\n"
            f'test $(grep -c -e "$1 $2" {tmp_path}/said) = 3 || exit 75\n'
            "case $* in *scenes*) exit 7;; esac\n"
        )
        (tmp_path / name).chmod(0o755)
    done = make("--old-file=setup", "gpu", f"BIN={tmp_path}", "DRY_RUN=1")
    assert done.returncode == 2
    assert "7" in done.stderr.splitlines()[-1]
    said = (tmp_path / "said").read_text().splitlines()
    assert [line.removeprefix("-m ").split()[0] for line in said] == [
        "tests/gpu/run.py",
        "benchmarks.gpu.ops",
        *["benchmarks.end_to_end.run"] * 3,
        *["compare"] * 3,
        "scenes",
        *["compare"] * 3,
    ]
    assert all("--dry-run" in line for line in said[:5])
    assert all("train.max_steps=1" in line for line in said if line.startswith("compare"))
    assert all(f"runs/paper_{data}" not in "".join(said) for data in ("nuclei", "scenes"))


def test_sanitizers_are_cut_off(tmp_path: Path) -> None:
    """Played by a script: it says so of one that hangs, and of one that passes what it reached."""
    program = tmp_path / "compute-sanitizer"
    program.write_text("#!/bin/sh\ncase $2 in memcheck) sleep 600;; *) echo $2 $4 $5 $6;; esac\n")
    program.chmod(0o755)
    code = (
        "import sys, pathlib; sys.path[:0] = ['tests/gpu', 'tests/helpers']; import test_gpu; "
        "test_gpu.SANITIZER_SECONDS = 3; "
        f"found = test_gpu.Sanitized(pathlib.Path({str(tmp_path)!r})); "
        "print([found.wait(tool) for tool in ('memcheck', 'racecheck')])"
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SOLO_ATTN_TEST_DEVICES": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said.startswith("[(None, ''), (0, 'racecheck 1 ")
    assert "gpu_cases.py" in said


def test_what_is_installed_is_measured(tmp_path: Path) -> None:
    """Not the solo_attn of the repository, from where benchmarks run: it may not be compiled."""
    (tmp_path / "solo_attn").mkdir()
    (tmp_path / "solo_attn" / "__init__.py").touch()
    command = [sys.executable, "-c", "import benchmarks, solo_attn; print(solo_attn.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    told = subprocess.check_output(command, cwd=ROOT, text=True, env=environment)
    assert Path(told.strip()).is_relative_to(tmp_path)
