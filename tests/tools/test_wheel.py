"""What `make wheel` and a release check of a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from built_wheel import needs_extension

import solo_attn
from tools import wheel as tool

pytestmark = [pytest.mark.slow, needs_extension]


@pytest.fixture(scope="session")
def repaired(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool.repair(wheel, tmp_path_factory.mktemp("repaired"))


def test_a_package_index_takes_it(repaired: Path) -> None:
    assert tool.problems(repaired) == []
    with zipfile.ZipFile(repaired) as archive:
        assert "solo_attn/_build.json" in archive.namelist()
        assert not [name for name in archive.namelist() if ".libs/" in name], (
            "no second copy of torch or CUDA"
        )


def test_what_is_wrong_with_it_is_said(
    repaired: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "LIMIT", 1 << 20)
    raw = tmp_path / wheel.name
    with zipfile.ZipFile(repaired) as source, zipfile.ZipFile(raw, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr("kernels/__init__.py", "")
        target.writestr("solo_attn/libtorch_cpu.so", "")
    monkeypatch.setattr(tool, "run", lambda *command: "")
    untagged, large, beside, second = tool.problems(raw)
    assert untagged.startswith("expected a name as solo_attn-0.1.0-cp310-abi3-manylinux_2_28_x86_64, got")
    assert large.startswith("expected at most 1 MiB, got ")
    assert "and nothing beside it, got ['kernels', 'solo_attn', " in beside
    assert second.endswith("got ['solo_attn/_C.abi3.so', 'solo_attn/libtorch_cpu.so']")


@pytest.mark.parametrize("tag", ["v", "v0.0.1", solo_attn.__version__])
def test_a_tag_of_another_version_is_refused(tag: str) -> None:
    command = [sys.executable, "-m", "tools.wheel", "version"]
    assert subprocess.run([*command, f"v{solo_attn.__version__}"], cwd=tool.ROOT).returncode == 0
    done = subprocess.run([*command, tag], cwd=tool.ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == f"wheel: expected the tag v{solo_attn.__version__}, got {tag}"
