"""How fast, how large and how right: CONTRIBUTING.md says what lies in which room and how to run it."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# `python -m benchmarks...` puts the repository first, whose solo_attn may not be compiled: what is installed
# goes before it.
sys.path.sort(key=lambda entry: Path(entry).resolve() == ROOT)
