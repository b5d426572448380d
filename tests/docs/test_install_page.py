"""docs/install.md names extras, builds and messages that exist."""

from __future__ import annotations

import re

from pages import ROOT

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


def test_every_extra_exists() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.split("[project.optional-dependencies]")[1].split("\n[project.")[0]
    known = set(re.findall(r"^(\w+) = \[", extras, flags=re.MULTILINE))
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name
        for path in pages
        for names in re.findall(r'"\.\[([\w,]+)\]"', path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert {"train", "pretrained", "tiff"} <= named
    assert named <= known


def test_every_build_is_one() -> None:
    (choices,) = re.findall(r"if build not in \((.+?)\)", SETUP)
    told = re.findall(r"^\| `(\w+)`(?: \(default\))? \|", PAGE, flags=re.MULTILINE)
    assert told[1:] == re.findall(r'"(\w+)"', choices)


def test_the_messages_are_those_of_the_build() -> None:
    for message in (
        "compiling its kernels needs torch >= 2.11 in the building Python",
        "SOLO_ATTN_BUILD=cuda: ",
    ):
        assert message.removesuffix(": ") in PAGE
        assert message in SETUP
