"""One wheel under another torch: built with this environment's, it runs the op tests under the newest.

python -m tools.abi        # or: make test-abi

The newest torch of the package index is installed into build/abi/venv (several gigabytes), an environment of
its own that has nothing of this checkout; `make results` writes what came of it into the README.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks import ROOT
from benchmarks.report.stored import CPU, RESULTS
from solo_attn.bench import environment

FOLDER = ROOT / "build" / "abi"
PYTHON = FOLDER / "venv" / "bin" / "python"
# What the op tests use; the wheel itself is put there without its dependencies, so that they stay the newest.
NEEDED = [
    "torch",
    "torchvision",
    "numpy",
    "typer",
    "rich",
    "pytest",
    "pytest-timeout",
    "hypothesis",
    "pycocotools",
]
FACTS = (
    "import json, torch, torchvision, solo_attn; from solo_attn.backends import compiled; compiled.load(); "
    "print(json.dumps([torch.__version__, torchvision.__version__, solo_attn.__file__, "
    "compiled.CONFIGURATION['torch']]))"
)


def run(*command: object, cwd: Path = FOLDER) -> str:
    """The output of a command; it is shown if the command fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"abi: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build, install, test, store."""
    wheels, site = FOLDER / "wheels", FOLDER / "site"
    for folder in (wheels, site, FOLDER / "tests"):
        shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT)
    (wheel,) = wheels.glob("*-cp310-abi3-*.whl")
    if not PYTHON.exists():
        run(sys.executable, "-m", "venv", FOLDER / "venv")
    run(PYTHON, *pip, "install", "--upgrade", *NEEDED)
    with zipfile.ZipFile(wheel) as archive:  # which is all that installing it does
        archive.extractall(site)
    for name in ("ops", "helpers"):
        shutil.copytree(ROOT / "tests" / name, FOLDER / "tests" / name)
    torch, vision, file, built = json.loads(run(PYTHON, "-c", FACTS, cwd=site))
    assert Path(file).is_relative_to(site), file
    settings = ("-c", ROOT / "pyproject.toml", "--rootdir", FOLDER, "-p", "no:cacheprovider", "-q")
    output = run(PYTHON, "-m", "pytest", *settings, FOLDER / "tests", cwd=site)
    counts = re.findall(r"(\d+) (passed|skipped)", output.splitlines()[-1])
    found = {
        "wheel": wheel.name,
        "built_with": built,
        "run_with": torch,
        "torchvision": vision,
        **{kind: int(count) for count, kind in counts},
        "environment": environment(),
    }
    path = RESULTS / CPU / "abi.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
