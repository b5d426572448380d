"""Files are whole or not there, and those who write the same one do not disturb each other."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')
pytest.importorskip("lightning", reason='the extra "train" is not installed')

import solo_attn
from solo_attn._utils.files import replacing, write_durably
from solo_attn.data import write_street_scenes
from solo_attn.training import Config

WAYS = {
    "plain": replacing,
    "durable": lambda path: replacing(path, durable=True),
    "with a message": lambda path: replacing(path, "test"),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out.png"
    with WAYS[way](out) as first:
        first.write_text("first")
        with WAYS[way](out) as second:
            assert first != second
            second.write_text("second")
        assert (first.read_text(), out.read_text()) == ("first", "second")
    assert out.read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


def test_the_temporary_file_says_whose_it_is_and_what(tmp_path: Path) -> None:
    """matplotlib reads the format from the suffix; who lists a folder leaves out names with a dot."""
    with replacing(tmp_path / "a.b.png") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
        assert temporary.name.startswith(f".a.b.{os.getpid()}.")
        temporary.touch()


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    with pytest.raises(KeyError), WAYS[way](out) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "a.yaml", tmp_path / "file" / "a.yaml"):
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match=re.escape(f"'{path}'")) as caught:
            Config().save(path)
        assert "tmp." not in str(caught.value).replace(str(tmp_path), "")


def test_the_message_names_the_function_and_the_path(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.png"
    expected = (
        f"test: expected path to be a file that can be written, got '{path}' (No such file or directory)"
    )
    with pytest.raises(OSError, match=re.escape(expected)), replacing(path, "test") as temporary:
        temporary.touch()


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def write_scenes(folder: Path) -> Path:
    write_street_scenes(folder, num_train=1, num_val=1, size=(32, 64))
    return folder / "scenes.json"


def write_config(folder: Path) -> Path:
    Config().save(folder / "config.yaml")
    return folder / "config.yaml"


@pytest.mark.parametrize("write", [write_scenes, write_config])
def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path)
    whole, really = path.read_text(), Path.write_text
    files = sorted(tmp_path.rglob("*"))
    if write is write_scenes:
        path.unlink()
        files.remove(path)

    def full(self: Path, text: str, encoding: str | None = None) -> int:
        if self.stem.lstrip(".").startswith(path.stem):
            really(self, text[: len(text) // 2], encoding=encoding)
            raise OSError(28, "No space left on device")
        return really(self, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path)
    assert sorted(tmp_path.rglob("*")) == files
    assert write is write_scenes or path.read_text() == whole


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    write_durably(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_there_is_one_way_to_write_a_file() -> None:
    """inspect.json, scenes.json, configurations, results: by the helper, and by no copy of it."""
    package = Path(solo_attn.__file__).parent
    other = re.compile(r"os\.replace\(|temporary\.replace\(|(?<!temporary)\.write_(text|bytes)\(")
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if path.name != "files.py" and other.search(line) and "/proc/" not in line
    ]
    assert found == []
