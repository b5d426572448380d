"""docs/method.md is where the code says it is: each reference names a section and a step that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
FOLDERS = ("solo_attn", "kernels", "csrc", "tests", "benchmarks", "tools", "configs")
ENDINGS = {".py", ".h", ".cpp", ".cu", ".cuh", ".yaml"}
# In comments a reference may go on in the next line.
REFERENCE = re.compile(
    r'docs/method\.md,[\s/#]+"([^"]+)"(?:[\s/#]+steps?[\s/#]+(\d+)(?:[\s/#]+(?:and|to)[\s/#]+(\d+))?)?'
)


def sources() -> dict[str, str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def sections() -> dict[str, set[int]]:
    """The numbered steps of each section."""
    found = {}
    for part in re.split(r"^#+ ", METHOD, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        found[title] = {int(number) for number in re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE)}
    return found


def wrong(text: str) -> list[str]:
    """References to what is not there."""
    known, found = sections(), []
    for section, *steps in REFERENCE.findall(text):
        if section not in known or {int(step) for step in steps if step} - known[section]:
            found.append(" ".join([section, *steps]).strip())
    return found


def test_every_reference_is_there() -> None:
    texts = {name: text for name, text in sources().items() if name != "tests/docs/test_method_page.py"}
    assert {name: found for name, text in texts.items() if (found := wrong(text))} == {}
    assert sum(len(REFERENCE.findall(text)) for text in texts.values()) >= 40
    loose = [
        name for name, text in texts.items() if text.count("docs/method.md,") > len(REFERENCE.findall(text))
    ]
    assert loose == [], "a section in double quotes after the comma"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('docs/method.md, "Inference" steps 3 and 4', []),
        ('docs/method.md, "Inference"\n    step 4', []),
        ('// docs/method.md, "Identities"\n// step 8', []),
        ('docs/method.md, "Inference" step 10', ["Inference 10"]),
        ('docs/method.md, "Inference" steps 8 to 10', ["Inference 8 10"]),
        ('docs/method.md, "Conclusion"', ["Conclusion"]),
    ],
)
def test_a_wrong_reference_is_seen(text: str, expected: list[str]) -> None:
    assert [found.strip() for found in wrong(text)] == expected


def test_nothing_refers_to_what_is_not_here() -> None:
    """The code's own plan is no page of this repository."""
    unknown = re.compile(r"\bspec \d|\bspec\.md|\bdesign\.md")
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    texts = sources() | pages
    texts.pop("tests/docs/test_method_page.py")
    assert [name for name, text in texts.items() if unknown.search(text)] == []
