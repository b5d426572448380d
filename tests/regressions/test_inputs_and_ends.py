"""Inputs of the model, text that is drawn or printed, and the ends of commands."""

from __future__ import annotations

import errno
import os
import pkgutil
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason='the extra "train" is not installed')

import torch
from command_line import run

from solo_attn._utils.files import alone_in, replacing
from solo_attn.evaluation import fonts
from solo_attn.models import SOLO, build_solo


@pytest.fixture(scope="module")
def model() -> SOLO:
    small = {"backbone": "resnet18", "fpn_channels": 32, "head_channels": 32, "num_convs": 1}
    return build_solo(2, **small, num_grids=(4, 3, 2, 2, 2), min_size=32, max_size=64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_dtype_are_named(model: SOLO, dtype: torch.dtype) -> None:
    images = [torch.rand(3, 32, 32), torch.rand(3, 32, 32).to(dtype)]
    with pytest.raises(TypeError, match=rf"images\[1\] of the model's dtype torch.float32, got {dtype}"):
        model.eval()(images)


TARGETS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "integers as boxes": (lambda t: t.update(boxes=t["boxes"].long()), r"\['boxes'\] of a float dtype"),
    "boxes NaN": (lambda t: t["boxes"].fill_(float("nan")), r"\['boxes'\] to be finite"),
    "sparse masks": (lambda t: t.update(masks=t["masks"].to_sparse()), r"\['masks'\] to be a dense tensor"),
    "another device": (
        lambda t: t.update(masks=t["masks"].to("meta")),
        r"\['masks'\] on the image's device cpu",
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_cannot_be_used_are_named(model: SOLO, name: str) -> None:
    target: dict[str, Any] = {
        "boxes": torch.tensor([[1.0, 1, 9, 9]]),
        "labels": torch.tensor([0]),
        "masks": torch.ones(1, 32, 32, dtype=torch.uint8),
    }
    spoil, message = TARGETS[name]
    spoil(target)
    with pytest.raises((TypeError, ValueError), match=rf"targets\[0\]{message}"):
        model.train()([torch.rand(3, 32, 32)], [target])


def test_a_name_that_no_font_has_becomes_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fonts.legible("person", 0) == "person"
    monkeypatch.setattr(fonts, "_on_the_system", lambda wanted: None)
    fonts._say.cache_clear()
    with pytest.warns(
        UserWarning, match="no font on this system has the letters of '行人', written as class 3"
    ):
        assert fonts.legible("行人", 3) == "class 3"


def test_a_font_of_the_system_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"/a.ttf": frozenset(map(ord, "行")), "/b.ttf": frozenset(map(ord, "行人"))}
    entries = [type("Entry", (), {"fname": name})() for name in has]
    monkeypatch.setattr(fonts.font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(fonts, "_characters", lambda file: has.get(file, frozenset(map(ord, "abc"))))
    fonts._on_the_system.cache_clear()
    assert fonts.font_for("行人") == "/b.ttf"
    fonts._on_the_system.cache_clear()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file_and_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match="free some space") as caught, replacing(tmp_path / "a.json"):
        raise OSError(number, os.strerror(number))  # as a write fails: the system names no file
    assert str(tmp_path / "a.json") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# What writes a format of which there is one file; the others are written for each image.
ALONE = {
    "parquet": ("solo_attn.bulk.run", "write_parquet"),
    "coco": ("solo_attn.bulk.run", "_gather"),
}


@pytest.mark.parametrize("kind", ["picture", "geojson", "ids", "parquet", "coco"])
def test_a_prediction_on_a_full_disk_names_the_file_and_leaves_no_half_one(
    trained: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The disk is full while the second file is written, or the only one."""
    place, name = ALONE.get(kind, ("solo_attn.bulk.run:_Writer", "add"))
    owner = pkgutil.resolve_name(place)
    really, calls = getattr(owner, name), []

    def write(*arguments: Any) -> Any:
        calls.append(1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if kind in ALONE or len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
        try:
            return really(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    command = ["predict", trained.last, scenes / "val", "--device", "cpu", "--format", kind, "--score", 0]
    command += ["--workers", 0, "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, write)
        code, output = run(*command)
    assert code == 2, output
    assert "too large" in output
    assert re.search(rf"{re.escape(str(tmp_path))}/\w", output), output  # and no temporary name
    left = [path for path in tmp_path.rglob("*") if path.is_file() and ".pieces" not in path.parts]
    assert len(left) == (0 if kind in ALONE else 1), left  # the first image's, and nothing half
    code, _ = run(*command, "--resume")
    assert code == 0


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys\nfrom solo_attn._utils.files import alone_in\n"
    code += "with alone_in(sys.argv[1]):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="one run at a time"), alone_in(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with alone_in(tmp_path):
            pass


def test_the_reader_of_a_pipe_may_go_and_names_in_any_alphabet_be_printed() -> None:
    """One process for each would take seconds more."""
    code = (
        "import sys, typer\nfrom solo_attn.cli.app import app, command\n"
        "from solo_attn._utils.console import plain_console\n"
        "@command\ndef names() -> None:\n"
        "    plain_console().print('行人\\x1b[2J')\n    sys.stdout.flush()\n"
        "    sys.stdin.read()\n    print('x' * 100000)\n"
        "app(['names'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"\\u884c\\u4eba\\x1b[2J\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
    process.stderr.close()
