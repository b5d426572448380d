"""Build and check wheels for a package index.

python -m tools.wheel build FOLDER            # compile, then repair into FOLDER; or: make wheel
python -m tools.wheel repair WHEEL FOLDER     # what cibuildwheel runs on each wheel that it builds
python -m tools.wheel check WHEEL...          # size, contents, tags, both stable ABIs
python -m tools.wheel version TAG             # that a tag such as v0.2.0 is the version of this tree

Needs nothing of this repository's environment but auditwheel, abi3audit and torch-abi-audit.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Torch and the driver bring these, in versions that fit each other: the wheel must not hold a second copy.
BROUGHT_BY_TORCH = ("libtorch*", "libc10*", "libshm*", "libgomp*", "libcuda*", "libcu*", "libnv*")
LIMIT = 40 << 20  # bytes of a wheel; PyPI accepts 100 MiB
NAME = r"solo_attn-[\w.]+-cp310-abi3-(manylinux_2_\d+_\w+\.?)+(linux_\w+)?"


def run(*command: object) -> str:
    """The output of a program; if it fails, that is the error message."""
    # The programs are beside Python, or on PATH as in the container of manylinux.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": path},
    )
    if done.returncode != 0:
        raise SystemExit(f"wheel: {' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def version() -> str:
    """The version in solo_attn/__init__.py."""
    for node in ast.parse((ROOT / "solo_attn" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(name) for name in node.targets] == ["__version__"]:
            return str(ast.literal_eval(node.value))
    raise SystemExit("wheel: expected solo_attn/__init__.py to say __version__")


def build(folder: Path) -> Path:
    """Compile this tree with the environment's torch, and repair the wheel into ``folder``."""
    with tempfile.TemporaryDirectory() as raw:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps")
        run(*pip, "--no-build-isolation", "-w", raw, ROOT)
        (wheel,) = Path(raw).glob("*.whl")
        return repair(wheel, folder)


def repair(wheel: Path, folder: Path) -> Path:
    """Give the wheel the oldest manylinux tag that its symbols allow, with nothing of torch or CUDA in it."""
    excluded = [f"--exclude={name}" for name in BROUGHT_BY_TORCH]
    with tempfile.TemporaryDirectory() as made:
        run("auditwheel", "repair", *excluded, "-w", made, wheel)
        (repaired,) = Path(made).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(repaired, folder))


def problems(wheel: Path) -> list[str]:
    """The reasons why the wheel cannot be published."""
    found = []
    if not re.fullmatch(NAME, wheel.stem):
        found.append(f"expected a name as solo_attn-0.1.0-cp310-abi3-manylinux_2_28_x86_64, got {wheel.stem}")
    if (size := wheel.stat().st_size) > LIMIT:
        found.append(f"expected at most {LIMIT >> 20} MiB, got {size / (1 << 20):.1f} MiB")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as site:
        names = archive.namelist()
        tops = {name.partition("/")[0] for name in names}
        if tops != {"solo_attn", f"solo_attn-{version()}.dist-info"}:
            found.append(f"expected solo_attn {version()} and nothing beside it, got {sorted(tops)}")
        libraries = [name for name in names if ".so" in name]
        if libraries != ["solo_attn/_C.abi3.so"]:
            found.append(f"expected one library, solo_attn/_C.abi3.so, got {libraries}")
        archive.extractall(site)
        for audit in (
            ("abi3audit", "--strict", wheel),
            ("torch-abi-audit", "--check", "both", Path(site) / "solo_attn"),
        ):
            try:
                run(*audit)
            except SystemExit as error:
                found.append(str(error))
    return found


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheel", description="Wheels for a package index.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("build").add_argument("folder", type=Path)
    repairing = actions.add_parser("repair")
    repairing.add_argument("wheel", type=Path)
    repairing.add_argument("folder", type=Path)
    actions.add_parser("check").add_argument("wheels", type=Path, nargs="+")
    actions.add_parser("version").add_argument("tag")
    chosen = parser.parse_args()
    if chosen.action == "build":
        print(build(chosen.folder))
    elif chosen.action == "repair":
        print(repair(chosen.wheel, chosen.folder))
    elif chosen.action == "version":
        if chosen.tag != f"v{version()}":
            raise SystemExit(f"wheel: expected the tag v{version()}, got {chosen.tag}")
    else:
        for wheel in chosen.wheels:
            if found := problems(wheel):
                raise SystemExit("\n".join(f"{wheel.name}: {line}" for line in found))
            print(f"{wheel.name}: {wheel.stat().st_size / (1 << 20):.1f} MiB, passed")


if __name__ == "__main__":
    main()
