"""A wheel of this tree around the extension that is there: packing takes seconds, compiling minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import solo_attn
from solo_attn.backends import compiled

ROOT = Path(__file__).parents[2]
needs_extension = pytest.mark.skipif(
    compiled.CONFIGURATION["build"] == "none", reason="nothing is compiled in this installation"
)


def copy_sources(folder: Path) -> Path:
    """A fresh copy of what the build reads, so that nothing built earlier is found."""
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("__pycache__", "_C.*", "_build.json")
    for name in ("solo_attn", "csrc", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    return folder


def pack(folder: Path) -> Path:
    """The wheel, as `pip wheel` leaves it."""
    source = copy_sources(folder / "source")
    environment = {**os.environ, "PYTHONPATH": "", "SOLO_ATTN_BUILD": compiled.CONFIGURATION["build"]}

    def setup(*command: str) -> None:
        line = [sys.executable, "setup.py", "-q", *command]
        done = subprocess.run(line, cwd=source, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    setup("build_py")
    (package,) = source.glob("build/lib*/solo_attn")
    for name in ("_C.abi3.so", "_build.json"):
        shutil.copy(Path(solo_attn.__file__).parent / name, package)
    setup("bdist_wheel", "--skip-build", "--dist-dir", str(folder / "dist"))
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel
