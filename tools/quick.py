"""The tests to run before each commit: a fast core, and those of the changed files.

python -m tools.quick [COMMIT]    # prints their paths; `make quick` lints and runs them

Changed files are those that differ from the merge base with COMMIT ("main"), committed or not. Their tests
are found by name: those of an op or of a file of the package, and a changed test itself. If no test has a
file's name, those are taken that mention it. Code that all ops share is left to `make test`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Architecture, settings, the choice of backends, one fused op on all of its inputs, each op once.
CORE = (
    "tests/test_layout.py",
    "tests/_utils",
    "tests/backends/test_registry.py",
    "tests/models/test_settings.py",
    "tests/ops/test_examples.py",
    "tests/ops/test_mask_iou.py",
)
OPS = {"kernels": ("", "_triton"), "csrc": ("", "_cpu"), "solo_attn/ops": ("",), "solo_attn/reference": ("",)}
OPS["benchmarks/ops"] = ()  # make bench


def git(*arguments: str) -> list[str]:
    """The output lines of git, none if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed(since: str = "main") -> list[str]:
    """Files that differ from the merge base with ``since``, and new ones."""
    (base,) = git("merge-base", "HEAD", since) or ["HEAD"]
    return [*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")]


def tests_of(file: str) -> list[str]:
    """Paths of the tests with a changed file's name, else of those that mention it; for a test its own."""
    path = Path(file)
    folder, stem = path.parent.as_posix(), path.stem.strip("_")
    if path.parts[0] == "tests":
        return [file] if path.stem.startswith("test_") and path.suffix == ".py" else []
    if path.parts[0] == "csrc" and len(path.parts) > 2:
        ends = ("_cuda",) if path.suffix in (".cu", ".cuh") else OPS["csrc"]
        return [f"tests/ops/test_{path.parts[1]}{end}.py" for end in ends]
    if folder in OPS:
        return [f"tests/ops/test_{stem}{end}.py" for end in OPS[folder]]
    if path.parts[0] in ("solo_attn", "kernels", "benchmarks", "tools", "docs"):
        # tests/<folder of the package>, tests/benchmarks, ...; tests/ itself for solo_attn/predictor.py.
        room = path.parts[1] if path.parts[0] == "solo_attn" else path.parts[0]
        tests = sorted((ROOT / "tests" / ("" if room == path.name else room)).glob("test_*.py"))
        mention = re.compile(rf"\b{re.escape(path.stem)}\b")
        found = [test for test in tests if stem in test.stem]
        found = found or [test for test in tests if mention.search(test.read_text(encoding="utf-8"))]
        return [test.relative_to(ROOT).as_posix() for test in found]
    return []


def selected(files: list[str]) -> list[str]:
    """The core and the tests of ``files`` that exist, each once."""
    wanted = [*CORE, *(test for file in files for test in tests_of(file))]
    inside = [test for test in dict.fromkeys(wanted) if (ROOT / test).exists()]
    return [test for test in inside if test in CORE or not test.startswith(tuple(f"{c}/" for c in CORE))]


if __name__ == "__main__":
    print(*selected(changed(*sys.argv[1:2])))
