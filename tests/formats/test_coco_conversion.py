"""A killed conversion goes on, and ends as an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import small_cityscapes

from solo_attn.data import DatasetError
from solo_attn.formats import cityscapes, convert_cityscapes
from solo_attn.formats.cityscapes import instance_ids

SLOW = """
import sys, time
from solo_attn.formats import cityscapes
really = cityscapes.instance_ids
def slowly(path, size):
    time.sleep(0.3)
    return really(path, size)
cityscapes.instance_ids = slowly
cityscapes.convert_cityscapes(sys.argv[1], sys.argv[2])
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_cityscapes.write(tmp_path / "set", 8, 2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the annotation files that are read from now on."""
    names: list[str] = []

    def counting(path: Path, size: tuple[int, int]):
        names.append(path.name)
        return instance_ids(path, size)

    monkeypatch.setattr(cityscapes, "instance_ids", counting)
    return names


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_killed(root: Path, tmp_path: Path, read: list[str]) -> None:
    out, partial = tmp_path / "out", tmp_path / "out" / ".instances_train.json.partial"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(root), str(out)])
    end = time.monotonic() + 120
    while len(lines(partial)) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(lines(partial)) - 1  # but for the first line, the settings
    assert 2 <= done < 8
    assert not (out / "instances_train.json").exists()
    convert_cityscapes(root, out)
    assert len(read) == 8 - done + 2
    assert not list(out.glob(".*"))
    convert_cityscapes(root, tmp_path / "unbroken")
    for name in ("instances_train.json", "instances_val.json"):
        assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def interrupted(root: Path, out: Path) -> Path:
    """A conversion that failed at its last training image; where the finished ones are."""
    path = sorted(root.glob("gtFine/train/*/*.json"))[-1]
    kept = path.read_text()
    path.write_text("{")
    with pytest.raises(DatasetError, match=f"{path.name}: expected JSON"):
        convert_cityscapes(root, out)
    path.write_text(kept)
    return out / ".instances_train.json.partial"


def test_after_a_fault_is_mended_only_that_file_is_read(root: Path, tmp_path: Path, read: list[str]) -> None:
    interrupted(root, tmp_path / "out")
    read.clear()
    convert_cityscapes(root, tmp_path / "out")
    assert len([name for name in read if not name.startswith("lindau")]) == 1


def test_a_changed_file_is_read_again(root: Path, tmp_path: Path, read: list[str]) -> None:
    interrupted(root, tmp_path / "out")
    path = sorted(root.glob("gtFine/train/*/*.json"))[0]
    content = json.loads(path.read_text())
    content["objects"] = content["objects"][:2]
    path.write_text(json.dumps(content))
    read.clear()
    convert_cityscapes(root, tmp_path / "out")
    assert path.name in read
    found = json.loads((tmp_path / "out" / "instances_train.json").read_text())
    assert not [a for a in found["annotations"] if a["image_id"] == 1]


def test_other_classes_begin_anew(root: Path, tmp_path: Path) -> None:
    interrupted(root, tmp_path / "out")
    convert_cityscapes(root, tmp_path / "out", classes=["bicycle"])
    convert_cityscapes(root, tmp_path / "unbroken", classes=["bicycle"])
    name = "instances_train.json"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_last_line(root: Path, tmp_path: Path, read: list[str], cut: int) -> None:
    partial = interrupted(root, tmp_path / "out")
    partial.write_bytes(partial.read_bytes()[:-cut])
    read.clear()
    convert_cityscapes(root, tmp_path / "out")
    assert len([name for name in read if not name.startswith("lindau")]) in (1, 2)


def test_all_faults_at_once(root: Path, tmp_path: Path) -> None:
    broken = sorted(root.glob("gtFine/train/*/*.json"))[:3]
    for path in broken:
        path.write_text("[]")
    with pytest.raises(DatasetError, match=r"3 fault\(s\)") as caught:
        convert_cityscapes(root, tmp_path / "out")
    assert all(path.name in str(caught.value) for path in broken)


def test_progress(root: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    convert_cityscapes(root, tmp_path / "out", advance=counted.append)
    assert sum(counted) == 10
