"""The ops as Hugging Face's `kernels` loads them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from built_wheel import needs_extension

from solo_attn.backends import OPS, compiled
from tools import hub_kernel

ROOT = Path(__file__).parents[2]

# In a process and a folder of its own: here, `kernels` would be the folder of this repository.
LOAD = """
import json, sys
from pathlib import Path
import kernels, torch

before = {*sys.modules}
module = kernels.get_local_kernel(Path(sys.argv[1]))
came = {name.partition(".")[0] for name in {*sys.modules} - before} - {*sys.stdlib_module_names}
features, masks = torch.ones(1, 2, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)
found = {
    "name": module.__name__,
    "ops": sorted(name for name in module.__all__ if callable(getattr(module, name))),
    "attention": module.grid_attention(features, backend="cpu").unique().tolist(),
    "iou": module.mask_iou(masks, backend="reference").tolist(),
    "taken": hasattr(torch.ops.solo_attn, "mask_iou"),
    "own": hasattr(getattr(torch.ops, module.__name__), "mask_iou"),
    "came": sorted(name for name in came if not name.startswith(("torch", "_sysconfig", module.__name__))),
}
import solo_attn  # the installed one, beside it
found["beside"] = solo_attn.grid_attention(features, backend="cpu").unique().tolist()
print(json.dumps(found))
"""


def test_it_holds_the_utilities_that_the_ops_import() -> None:
    places = [ROOT / "kernels", *(ROOT / "solo_attn" / part for part in ("backends", "ops", "reference"))]
    text = "".join(path.read_text() for place in places for path in place.rglob("*.py"))
    modules = set(re.findall(r"from \.\._utils\.(\w+) import", text))
    assert {f"_utils/{name}.py" for name in modules} == set(hub_kernel.UTILITIES)


@pytest.fixture(scope="session")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "solo-attn"
    hub_kernel.assemble(wheel, folder)
    return folder


@pytest.mark.slow
@needs_extension
def test_the_layout(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"build.toml", "build"}
    (variant,) = (folder / "build").iterdir()
    assert variant.name.startswith("torch-stable-abi211-c")
    metadata = json.loads((variant / "metadata.json").read_text())
    assert (metadata["name"], metadata["python-depends"]) == ("solo-attn", [])
    assert metadata["backend"]["type"] == compiled.CONFIGURATION["build"]
    content = (variant / "_C.abi3.so").read_bytes()
    assert content.count(f"\0{metadata['id']}\0".encode()) == 1
    assert hub_kernel.LIBRARY_NAME not in content


@pytest.mark.slow
@needs_extension
def test_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    metadata = json.loads(next((folder / "build").glob("*/metadata.json")).read_text())
    assert found["name"] == metadata["id"]
    assert {*OPS} <= {*found["ops"]}
    assert found["attention"] == found["beside"] == [2.0]
    assert found["iou"] == [[1.0, 1.0], [1.0, 1.0]]
    assert (found["taken"], found["own"]) == (False, True)
    assert found["came"] == [], "torch and itself alone"
