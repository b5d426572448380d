"""Make a folder from which Hugging Face's `kernels` loads the ops, from a built wheel.

python -m tools.hub_kernel WHEEL FOLDER       # FOLDER/build.toml and FOLDER/build/<variant>/

``kernels.get_local_kernel(FOLDER)``, or ``get_kernel`` once the folder is a repository of the Hub, gives a
module with the public ops. Several builds can be loaded into one process, so each has a name of its own for
its ops: the name that the package is loaded under, which stands once in the compiled library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

# The ops and what they stand on: torch, Triton where it runs, and nothing else.
UTILITIES = ("_utils/bits.py", "_utils/checks.py", "_utils/decay.py", "_utils/text.py")
PARTS = ("_C.abi3.so", "_build.json", *UTILITIES, "backends", "kernels", "ops", "reference")
STABLE_ABI = "211"  # the torch whose stable ABI setup.py compiles for
INIT = """\"\"\"The ops of solo-attn.\"\"\"

from .backends import explain
from .ops import *
from .ops import __all__ as _ops

__all__ = ["explain", *_ops]
"""
LIBRARY_NAME = b"\0solo_attn\0"
BUILD = """[general]
name = "solo-attn"
version = 1
license = "Apache-2.0"
backends = [{backends}]

[torch]
src = []
"""


def variant(facts: dict[str, object], wheel: str) -> str:
    """The name of the build, such as torch-stable-abi211-cu130-x86_64-linux."""
    found = re.search(r"(?:linux|manylinux\w*?)_(x86_64|aarch64)$", wheel)
    if found is None or facts["build"] == "none":
        raise SystemExit(f"hub_kernel: expected a wheel for Linux with compiled kernels, got {wheel}")
    # CUDA's minor versions run each other's code: the toolkit's own is named.
    device = f"cu{str(facts['nvcc']).replace('.', '')}" if facts["build"] == "cuda" else "cpu"
    return f"torch-stable-abi{STABLE_ABI}-{device}-{found[1]}-linux"


def assemble(wheel: Path, folder: Path) -> Path:
    """Replace ``folder``; returns the folder of the build in it."""
    # As long as "solo_attn", so that it can stand in the library in its place.
    name = f"s{hashlib.sha256(wheel.read_bytes()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory() as site:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        package = Path(site) / "solo_attn"
        facts = json.loads((package / "_build.json").read_text(encoding="utf-8"))
        made = folder / "build" / variant(facts, wheel.stem)
        shutil.rmtree(folder, ignore_errors=True)
        for part in PARTS:
            source, target = package / part, made / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
    (made / "__init__.py").write_text(INIT, encoding="utf-8")
    (made / "_utils" / "__init__.py").touch()
    rename(made / "_C.abi3.so", name)
    metadata: dict[str, object] = {"name": "solo-attn", "id": name, "version": 1, "license": "Apache-2.0"}
    backend: dict[str, object] = {"type": facts["build"]}
    if facts["build"] == "cuda":
        backend["archs"] = [arch.partition("+")[0] for arch in facts["archs"]]
    metadata |= {"python-depends": [], "backend": backend}
    (made / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    backends = ", ".join(f'"{device}"' for device in facts["ops"])
    (folder / "build.toml").write_text(BUILD.format(backends=backends), encoding="utf-8")
    return made


def rename(library: Path, name: str) -> None:
    """Rename the library's namespace of ops."""
    content = library.read_bytes()
    if content.count(LIBRARY_NAME) != 1 or len(name) + 2 != len(LIBRARY_NAME):
        raise SystemExit(f"hub_kernel: expected the name of its ops once in {library.name}")
    library.write_bytes(content.replace(LIBRARY_NAME, b"\0" + name.encode() + b"\0"))


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tools.hub_kernel", description="A folder for `kernels`.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    print(assemble(chosen.wheel, chosen.folder))


if __name__ == "__main__":
    main()
