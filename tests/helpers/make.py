"""What make would do, for tests of the Makefile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in the repository, as if no other make had started the tests."""
    # Run by `make test` itself, it would inherit that one's flags and speak of folders.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def dry_run(target: str) -> str:
    """What make would do, without doing it."""
    done = make("-n", target)
    assert done.returncode == 0, done.stderr
    return done.stdout
