"""A measurement in a process of its own, of which it prints the result as its last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from .. import ROOT


def in_child(module: str, *arguments: str, variables: Mapping[str, str] | None = None) -> Any:
    """What ``python -m benchmarks.<module> --child`` prints as JSON, with more environment variables."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--child", *arguments]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module.rpartition('.')[2]}: the process failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
